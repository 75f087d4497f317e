"""What one worker is: a process that holds what it was told to make, and does pieces of work with it. It knows nothing of Ray."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..progress import logger

Call = Callable[..., Any]  # of what a worker holds, a piece, and what all pieces share


class Worker:
    """`make` makes what it holds, when that is first needed: an error then is the answer to a question, and not the end of the process."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._held: list[Any] = []

    def ready(self) -> str:
        """The name of its machine, once it holds what it works with."""
        if not self._held:
            self._held.append(self._make())
        return platform.node()

    def do(self, call: Call, piece: Any, *shared: Any) -> tuple[Any, list[str]]:
        """What `call` makes of a piece, and what was warned of meanwhile."""
        self.ready()
        with _warnings() as sentences:
            return call(self._held[0], piece, *shared), sentences


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.sentences: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.sentences.append(record.getMessage())


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What the package warns of inside: nobody reads a worker's standard error."""
    kept = _Kept()
    logger.addHandler(kept)
    try:
        yield kept.sentences
    finally:
        logger.removeHandler(kept)
