"""numpy's products in one thread, where threads of our own make many small ones at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

_COUNTING = threading.Lock()
_inside = 0  # how many have come and not gone
_limits: threadpool_limits | None = None  # set by the first of them


@contextmanager
def blas_in_one_thread() -> Iterator[None]:
    """The library behind numpy's products computes in the calling threads alone inside; the last to leave leaves its number of threads as the first has found it.

    Its own threads would wait for each other at every product, which takes ten times as long.
    """
    global _inside, _limits
    with _COUNTING:
        if not _inside:
            _limits = threadpool_limits(1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _COUNTING:
            _inside -= 1
            if not _inside and _limits is not None:
                _limits.restore_original_limits()
