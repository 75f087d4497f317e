"""How many threads numpy's products take."""

from __future__ import annotations

import threading

import numpy as np
from threadpoolctl import threadpool_info

from demeanor.runtime.blas import blas_in_one_thread


def threads() -> set[int]:
    assert np.ones((2, 2)).sum() == 4  # numpy is here
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_the_last_to_leave_leaves_as_many_threads_as_the_first_has_found() -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with blas_in_one_thread():
            inside.set()
            assert leave.wait(60)

    before = threads()  # 1 where the machine or its settings allow no more, which the test cannot change
    second = threading.Thread(target=other)
    with blas_in_one_thread():
        second.start()
        assert inside.wait(60)
        assert threads() == {1}
    assert threads() == {1}  # the other is still inside
    leave.set()
    second.join()
    assert threads() == before
