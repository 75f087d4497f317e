"""Progress bars: shown on a terminal only, and only once something has taken two seconds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
PATIENCE = 2.0  # seconds before a bar appears
console = Console(stderr=True)


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """`items`, with a bar that counts to `total` when they take long."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(what, total=total)
    started, shown = time.monotonic(), False
    try:
        for item in items:
            yield item
            bar.advance(task)
            if not shown and time.monotonic() - started > PATIENCE:
                bar.start()
                shown = True
    finally:
        if shown:
            bar.stop()


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is said while the context lasts."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


def say(sentence: str) -> None:
    """One line for the person at the terminal; never on standard output, which belongs to results."""
    console.print(sentence, highlight=False, soft_wrap=True, markup=False)
