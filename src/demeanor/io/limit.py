"""A limit for code that came with somebody's files: how long it may compute, and how much memory it may fill.

It works in every thread, without signals: a watcher looks on while such code runs, and raises inside it what stops it.
A single step of the interpreter cannot be stopped, only what comes after it.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
SECONDS = 3.0  # of processor time of the one thread, so that a busy machine stops nothing
MEMORY = 2 * 2**30  # bytes that the process may grow by meanwhile
LOOK = 0.1  # seconds between two looks
IDLE = 1.0  # seconds without work after which the watcher ends
STATUS = Path("/proc/self/statm")


class Endless(Exception):
    """The code came to no end within its limits."""


class _Stopped(BaseException):
    """Raised inside the code by the watcher; not an Exception, which the code could swallow."""


@dataclass(eq=False)
class _Running:
    """One call that is watched."""

    thread: int
    began: float
    memory: int | None = None  # of the process, when it was first looked at

    def over(self, seconds: float) -> bool:
        used = _memory()
        self.memory = used if self.memory is None else self.memory
        return _clock(self.thread) - self.began > seconds or used - self.memory > MEMORY


_watched: set[_Running] = set()
_changed = threading.Condition()
_watcher: threading.Thread | None = None


def limited(function: Callable[[], T]) -> T:
    """What `function` gives. Raises Endless where it computes longer than SECONDS, or fills more than MEMORY, in its thread."""
    running = _Running(threading.get_ident(), _clock(threading.get_ident()))
    try:
        _watch(running)
        try:
            return function()
        finally:
            _release(running)
    except _Stopped as stop:
        raise Endless from stop


def _watch(running: _Running) -> None:
    global _watcher
    with _changed:
        _watched.add(running)
        if _watcher is None or not _watcher.is_alive():
            _watcher = threading.Thread(target=_look_on, name="demeanor limit", daemon=True)
            _watcher.start()


def _release(running: _Running) -> None:
    with _changed:
        if running in _watched:
            _watched.remove(running)
        else:  # it was told to stop in its very last step: nothing of that must reach what runs next
            _raise_in(running.thread, None)


def _look_on() -> None:
    global _watcher
    idle = 0.0
    while idle < IDLE:
        time.sleep(LOOK)
        with _changed:
            idle = 0.0 if _watched else idle + LOOK
            for running in [each for each in _watched if each.over(SECONDS)]:
                _watched.remove(running)
                _raise_in(running.thread, _Stopped)
            if idle >= IDLE:
                _watcher = None


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error))


def _clock(thread: int) -> float:
    """Processor time of a thread; the time of day's where the system does not tell."""
    if hasattr(time, "pthread_getcpuclockid"):
        return time.clock_gettime(time.pthread_getcpuclockid(thread))
    return time.monotonic()


def _memory() -> int:
    """Bytes of the process in memory; 0 where the system does not tell."""
    return int(STATUS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if STATUS.is_file() else 0
