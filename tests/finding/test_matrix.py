"""Every registered estimator with every verb: it works as its traits say, or is refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch

import demeanor as dm
from demeanor.behaviours import SET_NAMES
from demeanor.errors import DemeanorError
from demeanor.finding.compare import compare_estimators
from demeanor.finding.estimators import ESTIMATORS
from demeanor.finding.find import Findings, search_directions
from demeanor.finding.rank import find_again
from demeanor.finding.update import update
from demeanor.measure import Bench

pytestmark = pytest.mark.slow
T = TypeVar("T")
RANK = 2
SPLITS = {"train": 24, "val": 16, "test": 8}


def part(behaviour: dm.Behaviour, start: int) -> dm.Behaviour:
    """Every other prompt, as many of each split in every set, so that rows are pairs and every estimator has what it needs."""
    sets = {
        name: tuple(p for split, count in SPLITS.items() for p in behaviour.set(name, split)[start::2][:count])  # type: ignore[arg-type]
        for name in SET_NAMES
    }
    return replace(behaviour, **sets, pairs=True)


@pytest.fixture(scope="module")
def b(organism: dm.Session) -> dm.Behaviour:
    return part(dm.behaviour("over-refusal").settled(organism), 0)


@pytest.fixture(scope="module", params=[record.name for record in ESTIMATORS.every()])
def found(request: pytest.FixtureRequest, organism: dm.Session, b: dm.Behaviour) -> Findings:
    """What a search with one estimator alone finds."""
    return search_directions(organism, b, layer=3, estimators=[request.param])


@pytest.fixture
def direction(found: Findings) -> dm.Direction:
    return found.ranked()[0]


def outcome(call: Callable[[], T], possible: bool) -> T | None:
    """What a call gives where it is possible; else it is refused in one sentence, and not by a traceback."""
    if possible:
        return call()
    with pytest.raises(DemeanorError) as refused:
        call()
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return None


def test_find_gives_a_direction_of_that_estimator(found: Findings, direction: dm.Direction) -> None:
    names = {candidate.estimator for candidate in found.candidates}
    assert names == {direction.estimator}
    assert (direction.write is not None) == ESTIMATORS.named(direction.estimator).traits.reads
    assert direction.auroc > 0.8


def test_compare_says_what_ablating_it_leaves(organism: dm.Session, b: dm.Behaviour, found: Findings, direction: dm.Direction) -> None:
    (compared,) = compare_estimators(Bench(organism, b, "val"), found)
    assert compared.direction.estimator == direction.estimator
    assert 0 <= compared.scores["shows_rate"].value <= 1


def test_a_second_direction_is_found_by_the_same_estimator(
    organism: dm.Session, b: dm.Behaviour, found: Findings, direction: dm.Direction
) -> None:
    possible = not ESTIMATORS.named(direction.estimator).traits.reads
    wide = outcome(lambda: find_again(Bench(organism, b, "val"), found, RANK), possible)
    if wide is not None:
        assert len(wide.basis) <= RANK
        assert torch.allclose(wide.basis @ wide.basis.T, torch.eye(len(wide.basis)), atol=1e-5)
        assert wide.estimator == direction.estimator
        # What brings right answers back may be looked for in other ways, and is then told.
        first, *more = wide.rounds
        assert all(line.estimator == direction.estimator or line.right > first.right for line in more)


def test_it_can_be_ablated(organism: dm.Session, b: dm.Behaviour, direction: dm.Direction) -> None:
    prompts = b.set("shows", "test")[:8]
    plain = organism.logits(prompts)
    with organism.controlled(dm.ablate(direction)):
        ablated = organism.logits(prompts)
    assert (ablated - plain).abs().max() > 0.05 * plain.std()
    assert torch.equal(organism.logits(prompts), plain)


def test_its_file_is_what_it_was(direction: dm.Direction, tmp_path: Path) -> None:
    dm.save_direction(direction, tmp_path / "d.safetensors")
    again = dm.load_direction(tmp_path / "d.safetensors")
    assert again.estimator == direction.estimator
    assert torch.equal(again.basis, direction.basis)
    assert (again.write is None) == (direction.write is None)
    assert again.write is None or torch.equal(again.write, direction.write)


def test_more_prompts_are_merged_in(organism: dm.Session, direction: dm.Direction) -> None:
    more = part(dm.behaviour("over-refusal").settled(organism), 1)
    updated = outcome(lambda: update(organism, direction, more), ESTIMATORS.named(direction.estimator).traits.merges)
    if updated is not None:
        assert updated.direction.estimator == direction.estimator
        assert updated.direction.shows.n > direction.shows.n
