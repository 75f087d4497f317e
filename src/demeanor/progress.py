"""What the package says while it works: sentences to the logger `demeanor`, and bars on a terminal.

In Python the caller decides what becomes of the sentences, as with any logger: warnings reach standard error, the
rest is shown with `logging.basicConfig(level="INFO")`, and `logging.getLogger("demeanor").setLevel("ERROR")`
silences everything, bars too. The command line shows every sentence (`shown`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
PATIENCE = 2.0  # seconds before a bar appears
LINE_AFTER = 20.0  # seconds before a line says how far the work is, where there is no terminal
_work = threading.local()  # how many pieces of work each thread is inside of
console = Console(stderr=True)
logger = logging.getLogger("demeanor")
_silent: ContextVar[bool] = ContextVar("silent", default=False)
_no_bars: ContextVar[bool] = ContextVar("no_bars", default=False)
_muted: dict[str, tuple[int, int]] = {}  # by library: how many threads mute it, and its level before the first did
_muting = threading.Lock()
_one_bar = threading.Lock()  # a terminal has room for one: nested work and other threads go on without


def _silenced() -> bool:
    return _silent.get() or os.environ.get("RANK", "0") != "0"  # of a launch of several processes the first one speaks


# What moves the cursor, hides text, rings or turns the direction of writing: all of Unicode's controls but the line break and the tab.
_CONTROLS = {number: f"\\x{number:02x}" for number in (*range(9), *range(11, 32), *range(127, 160))}
_CONTROLS |= {number: f"\\u{number:04x}" for number in (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000))}


def printable(text: str) -> str:
    """A text as a terminal may show it: control characters stand there as they are written in a program."""
    return text.replace("\r\n", "\n").translate(_CONTROLS)


def say(sentence: str) -> None:
    """How the work goes, in one line; never on standard output, which belongs to results."""
    if not _silenced():
        logger.info("%s", sentence)


def warn(sentence: str) -> None:
    """What was left out, or may not be what was meant, in one line."""
    if not _silenced():
        logger.warning("%s", sentence)


def quiet() -> AbstractContextManager[None]:
    """Nothing is said by this thread while the context lasts, and no bar appears."""
    return _set(_silent)


def no_bar() -> AbstractContextManager[None]:
    """No bar appears in this thread while the context lasts, where one would stand in the middle of a text; sentences are said as ever."""
    return _set(_no_bars)


@contextmanager
def _set(flag: ContextVar[bool]) -> Iterator[None]:
    token = flag.set(True)
    try:
        yield
    finally:
        flag.reset(token)


class Stages:
    """One line as each stage of a job begins: which it is, and of how many."""

    def __init__(self, of: int) -> None:
        self.of, self.number = of, 0

    def begin(self, what: str) -> None:
        self.number += 1
        say(f"{self.number}/{self.of} {what}")


class _OnConsole(logging.Handler):
    """Sentences on standard error, as they are."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(printable(record.getMessage()), highlight=False, soft_wrap=True, markup=False, emoji=False)


@contextmanager
def shown() -> Iterator[None]:
    """Every sentence is a line on standard error while the context lasts; the logger is as before afterwards."""
    if any(isinstance(handler, _OnConsole) for handler in logger.handlers):
        yield
        return
    handler, level, propagate = _OnConsole(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a root handler of some library would say it again
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class Bar:
    """A bar that counts to `total`: on a terminal, after two seconds, and only while no other one is there.

    Elsewhere (a log file, a batch queue) a line says now and then how far the outermost work is, and how long it may still take.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._line_after = what, total, LINE_AFTER
        self._outermost = not getattr(_work, "inside", 0)
        _work.inside, self._open = getattr(_work, "inside", 0) + 1, True
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._wanted = console.is_terminal and not _silenced() and not _no_bars.get() and logger.isEnabledFor(logging.WARNING)
        self._progress = Progress(*columns, console=console, transient=True, disable=not self._wanted)
        self._task = self._progress.add_task(printable(what), total=total)
        self._started, self._shown = time.monotonic(), False

    def to(self, done: int, what: str | None = None) -> None:
        """`done` of them are done; `what` replaces the words before the bar."""
        self._progress.update(self._task, completed=done, description=what if what is None else printable(what))
        if self._wanted and not self._shown and time.monotonic() - self._started > PATIENCE and _one_bar.acquire(blocking=False):
            self._shown = True
            self._progress.start()
        self._line(done, what)

    def _line(self, done: int, what: str | None) -> None:
        """How far it is, ever more rarely, where nobody sees a bar."""
        elapsed = time.monotonic() - self._started
        if self._outermost and not console.is_terminal and 0 < done < self._total and elapsed > self._line_after:
            self._line_after = 4 * elapsed
            say(f"{what or self._what}: {done} of {self._total}, about {lasting(elapsed * (self._total - done) / done)} to go.")

    def close(self) -> None:
        if self._open:
            self._open = False
            _work.inside = max(0, getattr(_work, "inside", 0) - 1)
        if self._shown:
            self._shown = False
            self._progress.stop()
            _one_bar.release()


def lasting(seconds: float) -> str:
    """A length of time, as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """`items`, with a bar that counts to `total` when they take long."""
    with closing(Bar(what, total)) as bar:
        for done, item in enumerate(items, start=1):
            yield item
            bar.to(done)


@contextmanager
def muted(*libraries: str) -> Iterator[None]:
    """These libraries' loggers let errors through only; their levels are as before afterwards.

    For remarks that are not for our users: what matters of them is told in our own sentences.
    """
    for library in libraries:
        _mute(library)
    try:
        yield
    finally:
        for library in libraries:
            _unmute(library)


def _mute(library: str) -> None:
    with _muting:
        depth, level = _muted.get(library, (0, logging.getLogger(library).level))
        _muted[library] = (depth + 1, level)
        logging.getLogger(library).setLevel(logging.ERROR)


def _unmute(library: str) -> None:
    with _muting:
        depth, level = _muted.pop(library)
        if depth > 1:
            _muted[library] = (depth - 1, level)
        else:
            logging.getLogger(library).setLevel(level)
