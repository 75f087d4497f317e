"""Workers: every piece is done, in order, whoever dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from clusters import Striking, Two, two_machines
from demeanor.errors import DataError, ModelError
from demeanor.progress import warn
from demeanor.workers import Workers
from demeanor.workers.connection import _refuse_silent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    with pytest.MonkeyPatch.context() as patch, two_machines(patch) as cluster:
        yield cluster


@pytest.fixture
def workers(two: Two) -> Iterator[Workers]:
    made = Workers(partial(int, "40"))
    yield made
    made.close()


def plus(held: int, piece: int, more: int) -> int:
    return held + piece + more


def complains(held: int, piece: int) -> int:
    if piece == 3:
        raise DataError("The third piece is not usable.")
    warn(f"Piece {piece % 2} is odd.")
    return piece


def dies(held: int, piece: int) -> int:
    os._exit(1)


def nothing() -> None:
    raise ModelError("There is no model here.")


def test_machines_of_one_cpu_have_a_worker_each_and_results_come_in_order(workers: Workers) -> None:
    assert len(workers) == 2
    assert workers.map(plus, range(9), [1]) == ([41 + piece for piece in range(9)], [])
    assert workers.map(plus, [], [1]) == ([], [])


def test_a_piece_of_a_worker_that_is_killed_is_done_by_another(workers: Workers, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert workers.map(Striking(plus, tmp_path / "struck"), range(20), [1])[0] == [41 + piece for piece in range(20)]
    assert workers.deaths == 1
    assert workers.map(plus, range(4), [2])[0] == [42, 43, 44, 45]


def test_what_a_worker_says_and_what_it_raises_come_here(workers: Workers) -> None:
    results, sentences = workers.map(complains, [0, 1, 2, 4])
    assert results == [0, 1, 2, 4]
    assert sorted(sentences) == ["Piece 0 is odd.", "Piece 1 is odd."]
    with pytest.raises(DataError, match="The third piece is not usable"):
        workers.map(complains, range(8))
    for _ in range(3):  # and each of them goes on
        with pytest.raises(DataError, match="The third piece is not usable"):
            workers.map(complains, [3, 3, 3])
    assert workers.map(plus, range(3), [0])[0] == [40, 41, 42]


def test_a_piece_that_ends_every_worker_is_told(workers: Workers) -> None:
    with pytest.raises(ModelError, match=r"One piece of the work ended \d workers"):
        workers.map(dies, [0])


def test_workers_that_cannot_hold_what_they_work_with_say_why(two: Two) -> None:
    workers = Workers(nothing)
    with pytest.raises(ModelError, match="There is no model here"):
        workers.map(plus, [1], [1])
    with pytest.raises(ModelError, match="There is no model here"):
        workers.map(plus, [1], [1])
    workers.close()


@pytest.mark.parametrize("address", ["ray://a..b:10001", "127.0.0.1:1"])
def test_an_address_where_nothing_answers_is_told(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    with pytest.raises(DataError, match="No Ray cluster answers at"):
        _refuse_silent(address)


def test_a_worker_for_which_no_machine_is_large_enough_is_refused(two: Two) -> None:
    with pytest.raises(DataError, match=r"No machine of the cluster has room for a worker of 3 CPUs and 0 GPUs \(the largest have 1 and 0\)"):
        Workers(partial(int, "40"), cpus=3)
    with pytest.raises(DataError, match="--gpus-per-worker"):
        Workers(partial(int, "40"), gpus=1)
