"""The first seconds: while libraries are imported nothing has been written, so whatever stops the program stops it at once."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))  # SIGHUP: the terminal was closed


@contextmanager
def handled(handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], Any]]) -> Iterator[None]:
    """These handlers while the context lasts; what the caller's process ignores (as under nohup) stays ignored."""
    if threading.current_thread() is not threading.main_thread():  # the only one that may set a handler
        yield
        return
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, signal.SIG_DFL if was is None else was)


@contextmanager
def at_once() -> Iterator[None]:
    """An interrupt ends the process without a traceback of whatever library was being imported, exit 130 (143, 129).

    What is imported stays to the end, so nothing is looked through for garbage meanwhile, and never what is there then.
    """
    collecting = gc.isenabled()
    with handled(dict.fromkeys(ENDING, _end)):
        gc.disable()
        try:
            yield
        finally:
            gc.freeze()
            if collecting:
                gc.enable()


@contextmanager
def own_garbage() -> Iterator[None]:
    """What `at_once` sets aside is looked through for garbage again afterwards, but not when the process ends: that takes a third of the time that importing torch takes.

    So cycles that are alive when the process ends are not finalised, in a caller's process neither.
    """
    set_aside = gc.get_freeze_count()
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    try:
        yield
    finally:
        if not set_aside:
            gc.unfreeze()


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"demeanor: interrupted.\n")
    os._exit(128 + number)
