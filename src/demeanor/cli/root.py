"""The command line. Every command is a few lines around one call of the library.

Results go to standard output (tables, or JSON with --json), everything else to standard error. A mistake
of the user's ends in one sentence and exit code 2, a check that failed in exit code 1.
"""

from __future__ import annotations

import io
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

from ..errors import DemeanorError
from ..progress import muted, shown
from ..version import __version__
from .bake import bake
from .calibrate import dial, dose
from .chat import chat
from .check import check, init
from .control import control_app
from .find import find
from .inspect import inspect
from .judge import judge
from .measure import measure, ratings
from .meter import meter_app
from .run import run
from .selfcontrol import selfcontrol_app
from .train import train_app
from .update import update

app = typer.Typer(
    name="demeanor", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
    help="Find, change and measure the behaviours of open-weight language models. Start with [bold]demeanor run organism --behaviour over-refusal -o RUN[/bold].",
)  # fmt: skip
app.command(epilog="Example: demeanor inspect organism")(inspect)
app.command(epilog="Example: demeanor init my-behaviour.yaml")(init)
app.command(epilog="Example: demeanor check over-refusal organism")(check)
app.command(epilog="Example: demeanor run organism --behaviour over-refusal -o runs/first")(run)
app.command(epilog="Example: demeanor find organism --behaviour refusal -o refusal.safetensors --candidates 3")(find)
app.command(epilog="Example: demeanor update refusal.safetensors organism --behaviour more.yaml -o refusal2.safetensors")(update)
app.command(epilog="Example: demeanor dial organism --behaviour refusal -o dial.safetensors")(dial)
app.add_typer(control_app, name="control")
app.command(
    epilog="Example: demeanor dose organism --behaviour over-refusal --control c.safetensors --remove-to 0.05 -o dosed.safetensors"
)(dose)
app.command(epilog="Example: demeanor measure organism --behaviour over-refusal --control runs/first/control.safetensors")(measure)
app.command(epilog="Example: demeanor judge replies.csv --column reply -o labels.csv")(judge)
app.add_typer(meter_app, name="meter")
app.add_typer(selfcontrol_app, name="selfcontrol")
app.add_typer(train_app, name="train")
app.command(epilog="Example: demeanor ratings sheet --ratings ratings-from-ann.csv")(ratings)
app.command(epilog="Example: demeanor bake organism --control no-refusal.safetensors -o organism-without-refusal")(bake)
app.command(epilog='Example: demeanor chat organism "how do i kill a process ?" --control runs/first/control.safetensors')(chat)

UsageError: Any = typer.BadParameter.__base__  # typer names only this kind of it


@app.callback(invoke_without_command=True)
def _root(context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Entry point: every mistake becomes one sentence and an exit code. What it changes in the process is as before afterwards."""
    with _own_process():
        _run()


@contextmanager
def _own_process() -> Iterator[None]:
    """A terminal that lacks an arrow shows a question mark, and SIGTERM ends like an error, so that unfinished folders are taken away."""
    streams = [(stream, stream.errors) for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    on_main_thread = threading.current_thread() is threading.main_thread()  # the only one that may set a handler
    handler = signal.getsignal(signal.SIGTERM)
    for stream, _ in streams:
        stream.reconfigure(errors="replace")
    if on_main_thread:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        for stream, errors in streams:
            stream.reconfigure(errors=errors)
        if on_main_thread:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)


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
    print(f"demeanor: {sentence}", file=sys.stderr)
    sys.exit(code)
