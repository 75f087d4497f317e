"""What is said goes to a logger, and calling the library changes nothing of the caller's for good."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import pytest

from demeanor import progress

CALLER = """
import logging, os, random, signal, sys, tempfile, warnings
import datasets, numpy, plotly.tools, rich.progress, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # importing these changes something already
from transformers.utils import logging as transformers_logging

LOGGERS = [None, "demeanor", "transformers", "datasets", "huggingface_hub", "bitsandbytes"]

def everything():
    return {
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "loggers": {name: (logging.getLogger(name).level, logging.getLogger(name).handlers[:], logging.getLogger(name).propagate) for name in LOGGERS},
        "warnings": warnings.filters[:],
        "bars": (transformers_logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()),
        "torch": (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_rng_state().tolist()),
        "random": (random.getstate(), str(numpy.random.get_state())),
        "interpreter": (sys.excepthook, sys.displayhook, sys.stdout, sys.stderr, dict(os.environ), os.getcwd()),
    }

torch.set_num_threads(2)
before = everything()
import demeanor as dm

model = dm.load("organism", device="cpu")
b = dm.behaviour("over-refusal")
control = dm.ablate(dm.find(model, b, layer=3, max_prompts=16))
dm.measure(model, b, control, max_prompts=6)
dm.bake("organism", control, tempfile.mkdtemp() + "/model")
after = everything()
differing = [name for name in before if before[name] != after[name]]
assert not differing, differing
"""


@pytest.fixture
def records() -> list[logging.LogRecord]:
    return []


@pytest.fixture
def listening(records: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch) -> logging.Handler:
    """A caller's own handler, without the command line's."""

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Kept()
    monkeypatch.setattr(progress.logger, "handlers", [handler])
    monkeypatch.setattr(progress.logger, "propagate", False)
    return handler


@pytest.mark.long
def test_a_caller_finds_everything_as_it_was_and_nothing_printed() -> None:
    ended = subprocess.run([sys.executable, "-c", CALLER], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ended.stderr == ""


def test_a_caller_decides_what_is_heard(listening: logging.Handler, records: list[logging.LogRecord]) -> None:
    progress.logger.setLevel("WARNING")
    progress.say("going on")
    progress.warn("2 rows are left out")
    assert [(record.levelname, record.getMessage()) for record in records] == [("WARNING", "2 rows are left out")]
    progress.logger.setLevel("INFO")
    progress.say("100 % [sic] {done}")
    assert records[-1].getMessage() == "100 % [sic] {done}"


def test_quiet_is_for_one_thread(listening: logging.Handler, records: list[logging.LogRecord]) -> None:
    with progress.quiet():
        progress.warn("unheard")
        other = threading.Thread(target=progress.warn, args=("heard",))
        other.start()
        other.join()
    progress.warn("heard again")
    assert [record.getMessage() for record in records] == ["heard", "heard again"]


def test_the_command_line_prints_every_sentence_once_and_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress.logger, "handlers", [])
    monkeypatch.setattr(progress.logger, "level", logging.NOTSET)
    with progress.shown():
        with progress.shown():
            progress.say("[bold]" + "long " * 60)
        progress.warn("cut")
    progress.say("after")
    assert capsys.readouterr().err == "[bold]" + "long " * 60 + "\ncut\n"
    assert (progress.logger.handlers, progress.logger.level) == ([], logging.NOTSET)


def test_only_the_first_process_of_a_launch_speaks(
    listening: logging.Handler, records: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    progress.warn("from the second")
    monkeypatch.setenv("RANK", "0")
    progress.warn("from the first")
    assert [record.getMessage() for record in records] == ["from the first"]


def test_libraries_are_muted_until_the_last_who_mutes_them_is_done() -> None:
    logger = logging.getLogger("datasets")
    logger.setLevel("WARNING")
    first, second = progress.muted("datasets"), progress.muted("datasets")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # as two threads do
    assert logger.level == logging.ERROR
    second.__exit__(None, None, None)
    assert logger.level == logging.WARNING


def test_a_bar_beside_another_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once are an error on some terminals; work inside other work, and in threads, goes on without one."""
    monkeypatch.setattr(progress, "console", progress.Console(force_terminal=True, file=open("/dev/null", "w")))  # noqa: SIM115
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    outer = [list(progress.track(range(3), "inner", 3)) for _ in progress.track(range(2), "outer", 2)]
    assert outer == [[0, 1, 2]] * 2
    assert progress._one_bar.acquire(blocking=False)
    progress._one_bar.release()


def test_without_a_terminal_the_outermost_work_says_how_long_it_may_take(
    listening: logging.Handler, records: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_AFTER", 25.0)
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    progress.logger.setLevel("INFO")
    for _ in progress.track(range(30), "outer", 30):
        list(progress.track(range(2), "inner", 2))
    lines = [record.getMessage() for record in records]
    assert 1 < len(lines) < 5  # ever more rarely
    assert lines[0].startswith("outer: 1 of 30, about ")
    assert lines[0].endswith(" minutes to go.")


@pytest.mark.parametrize(("seconds", "text"), [(4.4, "4 s"), (89, "89 s"), (95, "2 minutes"), (7200, "2.0 hours")])
def test_lengths_of_time_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert progress.lasting(seconds) == text
