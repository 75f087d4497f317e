"""The first moment: help needs no model library, and an interrupt ends quietly."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from typer.main import get_command

from demeanor import cli
from demeanor.cli.listing import Commands

pytestmark = pytest.mark.slow

HEAVY = ("torch", "transformers", "plotly", "pyarrow", "datasets")
WATCH = f"""
import sys
from demeanor import cli
sys.argv = ["demeanor", *sys.argv[1:]]
try:
    cli.main()
except SystemExit as end:
    print(end.code or 0, [name for name in {HEAVY} if name in sys.modules])
"""


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 0), (["--version"], 0), (["control"], 0), (["train", "--help"], 0), (["bake", "--help"], 0), (["runn"], 2)])
def test_help_needs_no_model_library(arguments: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, "-c", WATCH, *arguments], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"{code} []", done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_listed_is_what_the_commands_say() -> None:
    """The list is read from sources: its names and sentences are those of the commands themselves."""
    root: Any = get_command(cli.app)
    for name in root.commands:
        listed, command = root.get_command(None, name), root.commands[name]
        assert listed.help == command.help, name
        if isinstance(listed, Commands):
            assert {sub: inner.help for sub, inner in listed.commands.items()} == {sub: inner.help for sub, inner in command.commands.items()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_at_any_moment_prints_no_traceback(number: signal.Signals) -> None:
    for wait in (0.1, 0.4, 0.8):
        process = subprocess.Popen(
            [sys.executable, "-m", "demeanor", "chat", "organism"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # whoever started the tests may ignore interrupts, as a shell's background does
        )  # fmt: skip
        assert process.stderr is not None
        first = process.stderr.readline()  # from here on the package's own handlers are there
        time.sleep(wait)
        os.kill(process.pid, number)
        told = first + process.communicate()[1]
        assert "Traceback" not in told
        assert process.returncode == 128 + number


def test_what_the_caller_ignores_stays_ignored() -> None:
    from demeanor.cli.starting import at_once

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with at_once():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not before
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_callers_garbage_is_collected_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["demeanor", "control", "ablate", "--help"])
    gc.unfreeze()  # whatever an import of an earlier test has set aside
    assert gc.isenabled()
    with pytest.raises(SystemExit):
        cli.main()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_what_was_imported_is_not_looked_through_when_the_process_ends() -> None:
    told = "import atexit, gc\natexit.register(lambda: print(gc.get_freeze_count() > 0))" + WATCH
    ended = subprocess.run([sys.executable, "-c", told, "control", "ablate", "--help"], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "True"


def test_a_shell_completes_commands_and_their_options() -> None:
    for typed, meant in (("demeanor me", {"measure", "meter"}), ("demeanor measure --max-p", {"--max-prompts"})):
        words = {"_DEMEANOR_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
        ended = subprocess.run([sys.executable, "-m", "demeanor"], env={**os.environ, **words}, capture_output=True, text=True, check=True)
        assert set(ended.stdout.split()) == meant
        assert ended.stderr == ""


@pytest.mark.parametrize(("own", "then"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")], ids=["unset", "set"])
def test_threads_that_wait_leave_the_cores_to_others_unless_told_otherwise(own: dict[str, str], then: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | own
    told = f"{WATCH}\nimport os\nprint(os.environ['OMP_WAIT_POLICY'])"
    ended = subprocess.run([sys.executable, "-c", told, "--version"], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split()[-1] == then


@pytest.mark.parametrize("package", ["controls", "export", "models"])
def test_what_is_imported_when_it_is_used_is_shown_before(package: str) -> None:
    code = f"import demeanor.{package} as it; print([name for name in it.__all__ if name not in dir(it) or getattr(it, name) is None])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    code = "import demeanor.controls; print(demeanor.controls.part.Part.__name__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "Part\n"
