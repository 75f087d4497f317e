"""A worker or a whole machine dies in the middle of a find and of a search, and what comes out is what comes out without."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import demeanor as dm
from clusters import Striking, Two, the_same, two_machines
from demeanor.errors import ModelError
from demeanor.models import SpreadSession
from demeanor.search.surrogates import Divergence
from demeanor.workers import Workers

pytestmark = pytest.mark.long
FEW = 48  # prompts of each split of each set


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[Two]:
    with two_machines(monkeypatch) as cluster:
        yield cluster


def struck(monkeypatch: pytest.MonkeyPatch, flag: Path, reads: type, after: int, **how: Any) -> None:
    """Of the calls that keep such a value of each row, whoever does a piece of number `after` or a later one may be ended by it, once."""
    plain, calls = Workers.map, iter(range(1 << 30))

    def map_(self: Workers, call: Any, pieces: Any, shared: Any, *named: Any) -> Any:
        strikes = isinstance(shared[1], reads) and next(calls) >= after
        return plain(self, Striking(call, flag, **how) if strikes else call, pieces, shared, *named)

    monkeypatch.setattr(Workers, "map", map_)


@pytest.mark.parametrize("machine", [False, True], ids=["a worker", "a machine"])
def test_a_find_goes_on(two: Two, monkeypatch: pytest.MonkeyPatch, organism: dm.Session, tmp_path: Path, machine: bool) -> None:
    behaviour = dm.behaviour("over-refusal")
    struck(monkeypatch, tmp_path / "struck", object, 3, machine=machine, spared=two.first)
    session = dm.load("organism", on="ray", device="cpu")
    assert isinstance(session, SpreadSession)
    found = dm.find(session, behaviour, layer=2, max_prompts=FEW)
    assert (tmp_path / "struck").exists()
    assert session.workers.deaths == 1
    the_same(found, dm.find(organism, behaviour, layer=2, max_prompts=FEW))


def test_a_search_goes_on_when_a_machine_dies(two: Two, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    options = {"model": "organism", "behaviour": "over-refusal", "device": "cpu", "max_prompts": 24, "trials": 40, "confirmed": 2, "checked": 0}
    alone = dm.search(dm.SearchPlan(**options), tmp_path / "alone")
    calm = dm.search(dm.SearchPlan(**options, on="ray"), tmp_path / "calm")
    struck(monkeypatch, tmp_path / "struck", Divergence, 1, machine=True, spared=two.first)
    several = dm.search(dm.SearchPlan(**options, on="ray"), tmp_path / "several")
    assert (tmp_path / "struck").exists()
    assert [trial.quick for trial in several.trials] == [trial.quick for trial in calm.trials]
    for other in (calm, alone):
        assert [trial.params for trial in several.trials] == [trial.params for trial in other.trials]
        for mine, its in zip(several.trials, other.trials):
            assert mine.quick.costs == pytest.approx(its.quick.costs, abs=1e-5)
        assert [point.recorded.number for point in several.front.points] == [point.recorded.number for point in other.front.points]
        for name in ("shows_rate", "guard_rate", "answers"):
            assert several.measurement.after[name] == other.measurement.after[name]


def large(held: int, piece: int) -> bytes:
    return bytes(3_000_000)  # which lies in the memory of machines, and not in the message


def test_when_the_machine_of_this_process_dies_that_is_told(two: Two, tmp_path: Path) -> None:
    workers = Workers(partial(int, "40"))
    other = next(machine.node_id for machine in two.cluster.worker_nodes)
    with pytest.raises(ModelError, match="The Ray cluster answers no more"):
        workers.map(Striking(large, tmp_path / "struck", machine=True, spared=other), range(40))
    workers.close()
