"""numpy's products in one thread, where threads of our own make many small ones at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from threadpoolctl import threadpool_limits

T = TypeVar("T")
_COUNTING = threading.Lock()
_inside = 0  # how many have come and not gone
_limits: threadpool_limits | None = None  # set by the first of them


@contextmanager
def blas_in_one_thread() -> Iterator[None]:
    """The library behind numpy's products computes in the calling threads alone inside; the last to leave leaves its number of threads as the first has found it.

    Its own threads would wait for each other at every product, which takes up to ten times as long.
    """
    global _inside, _limits
    with _COUNTING:
        if not _inside:
            _limits = _briefly(partial(threadpool_limits, 1, user_api="blas"))
        _inside += 1
    try:
        yield
    finally:
        with _COUNTING:
            _inside -= 1
            if not _inside and _limits is not None:
                _briefly(_limits.restore_original_limits)


def _briefly(change: Callable[[], T]) -> T:
    """What `change` gives in a thread that ends at once: the thread that sets a limit is the only one that may set another, until it ends."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(change).result()
