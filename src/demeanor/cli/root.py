"""The command line. Every command is a few lines around one call of the library.

Results go to standard output (tables, or JSON with --json), everything else to standard error. A mistake
of the user's ends in one sentence and exit code 2, a check that failed in exit code 1.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

from ..errors import DemeanorError
from ..io.json_files import json_text
from ..progress import muted, printable, shown
from .listing import Commands, Listed, Loaded
from .starting import ENDING, handled
from .versions import extras, lines, versions

COMMANDS = {
    "inspect": Listed("inspect", "Example: demeanor inspect organism"),
    "init": Listed("check", "Example: demeanor init my-behaviour.yaml"),
    "check": Listed("check", "Example: demeanor check over-refusal organism"),
    "run": Listed("run", "Example: demeanor run organism --behaviour over-refusal -o runs/first"),
    "find": Listed("find", "Example: demeanor find organism --behaviour refusal -o refusal.safetensors --candidates 3"),
    "update": Listed("update", "Example: demeanor update refusal.safetensors organism --behaviour more.yaml -o refusal2.safetensors"),
    "dial": Listed("calibrate", "Example: demeanor dial organism --behaviour refusal -o dial.safetensors"),
    "control": Listed("control", group=True),
    "dose": Listed(
        "calibrate", "Example: demeanor dose organism --behaviour over-refusal --control c.safetensors --remove-to 0.05 -o dosed.safetensors"
    ),
    "search": Listed("search", "Example: demeanor search organism --behaviour over-refusal --trials 200 -o runs/searched"),
    "measure": Listed("measure", "Example: demeanor measure organism --behaviour over-refusal --control runs/first/control.safetensors"),
    "judge": Listed("judge", "Example: demeanor judge replies.csv --column reply -o labels.csv"),
    "meter": Listed("meter", group=True),
    "selfcontrol": Listed("selfcontrol", group=True),
    "train": Listed("train", group=True),
    "ratings": Listed("measure", "Example: demeanor ratings sheet --ratings ratings-from-ann.csv"),
    "bake": Listed("bake", "Example: demeanor bake organism --control no-refusal.safetensors -o organism-without-refusal"),
    "export": Listed("export", "Example: demeanor export organism --control no-refusal.safetensors --as lora -o no-refusal-lora"),
    "push": Listed("push", "Example: demeanor push runs/first owner/less-refusal"),
    "audit": Listed("audit", "Example: demeanor audit organism organism-without-refusal -o recovered.safetensors"),
    "chat": Listed("chat", 'Example: demeanor chat organism "how do i kill a process ?" --control runs/first/control.safetensors'),
    "serve": Listed("serve", "Example: demeanor serve organism --control less-refusal=runs/first/control.safetensors"),
}


class Root(Commands):
    """`demeanor`, with its commands as they are listed above."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = Loaded(dict(COMMANDS))


app = typer.Typer(
    name="demeanor", cls=Root, pretty_exceptions_enable=False, rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]},
    help="Find, change and measure the behaviours of open-weight language models. Start with [bold]demeanor run organism --behaviour over-refusal -o RUN[/bold].",
)  # fmt: skip
UsageError: Any = typer.BadParameter.__base__  # typer names only this kind of it


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the versions of the program and of what results depend on.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --version: JSON for machines.")] = False,
) -> None:
    if version:
        print(json_text({**versions(), "extras": extras()}) if as_json else "\n".join(lines()))
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Entry point: every mistake becomes one sentence and an exit code. What it changes in the process is as before afterwards."""
    with _own_process():
        _run()


@contextmanager
def _own_process() -> Iterator[None]:
    """A terminal that lacks an arrow shows a question mark. SIGTERM and a closed terminal end like an error, so that unfinished folders are taken away."""
    streams = [(stream, stream.errors) for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    for stream, _ in streams:
        stream.reconfigure(errors="replace")
    try:
        with handled(dict.fromkeys(ENDING[1:], lambda number, _: sys.exit(128 + number))):  # the first is the interrupt, which Python handles
            yield
    finally:
        for stream, errors in streams:
            stream.reconfigure(errors=errors)


def _run() -> NoReturn:
    try:
        with shown(), muted("transformers", "datasets", "huggingface_hub", "bitsandbytes"):
            code = app(prog_name="demeanor", standalone_mode=False)
    except DemeanorError as error:
        _end(str(error), error.exit_code)
    except UsageError as error:
        mistake = error.format_message().replace("Value error, ", "").rstrip(".")
        _end(f"{mistake}; see {error.ctx.command_path if error.ctx else 'demeanor'} --help.", 2)
    except (KeyboardInterrupt, typer.Abort):
        _end("interrupted.", 130)
    except OSError as error:  # the reader of our output went away, or its disk is full
        _end(f"{error.filename or 'the output'} could not be read or written: {error.strerror}.", 2)
    sys.exit(code if isinstance(code, int) else 0)


def _end(sentence: str, code: int) -> NoReturn:
    print(f"demeanor: {printable(sentence)}", file=sys.stderr)
    sys.exit(code)
