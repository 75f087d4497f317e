"""Estimators by name, readers among them, and what the best of each does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import demeanor as dm
from demeanor.errors import ControlError, DataError
from demeanor.finding.compare import compare_estimators, estimators_for
from demeanor.finding.estimators import ESTIMATORS
from demeanor.finding.find import Findings, search_directions
from demeanor.measure import Bench

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def b(organism: dm.Session) -> dm.Behaviour:
    b = dm.behaviour("over-refusal").settled(organism)
    return replace(b, shows=b.shows[:90], lacks=b.lacks[:90], guard=b.guard[:60], neutral=b.neutral[:60], pairs=True)


@pytest.fixture(scope="module")
def found(organism: dm.Session, b: dm.Behaviour) -> Findings:
    unpaired = replace(b, pairs=False)
    return search_directions(organism, unpaired, layer=3, estimators=estimators_for(unpaired, None, True))


def test_every_estimator_makes_directions_that_point_to_shows(found: Findings) -> None:
    made = {candidate.estimator for candidate in found.candidates}
    assert made == set(ESTIMATORS.own_names()) - {"paired_pca"}
    last = [d for d in found.directions if d.site.position == -1]
    assert all(d.auroc > 0.95 and d.gap > 0 for d in last if d.estimator != "guard_orthogonal")


def test_a_reader_takes_the_whole_gap_away_at_its_site(organism: dm.Session, b: dm.Behaviour, found: Findings, tmp_path: Path) -> None:
    direction = next(d for d in found.directions if d.estimator == "logistic" and d.site.position == -1)
    dm.save_direction(direction, tmp_path / "d")
    again = dm.load_direction(tmp_path / "d")
    assert again.write is not None
    assert torch.equal(again.write, direction.write)
    control = dm.ablate(again)

    def gap() -> float:
        shows, lacks = (organism.capture(b.set(name, "train"), [direction.site]).values[:, 0].mean(0) for name in ("shows", "lacks"))  # type: ignore[arg-type]
        return float((shows - lacks).norm())

    whole = gap()
    with organism.controlled(control):
        assert gap() < 0.02 * whole
    with organism.controlled(dm.ablate(replace(again, write=None))):
        assert gap() > 0.3 * whole
    assert "run time" in (control.bakeable() or "")
    with pytest.raises(ControlError, match="logistic is a reader"):
        dm.rotate(again, again, 10)


def test_the_contest_is_won_by_what_it_does(organism: dm.Session, b: dm.Behaviour, found: Findings) -> None:
    bench = Bench(organism, b, "val", max_prompts=64)
    contest = compare_estimators(bench, found)
    merits = [bench.try_(dm.ablate(each.direction)).merit for each in contest]
    assert merits == sorted(merits, reverse=True)
    rates = [each.scores["shows_rate"].value for each in contest]
    answers = [each.scores["answers"].value for each in contest]
    assert rates[0] == min(rates) <= 0.05
    assert answers[0] == max(answers)
    names = [each.direction.estimator for each in contest]
    assert len(names) == len(set(names))
    best = {name: min(c.bypass for c in found.candidates if c.estimator == name and not c.discarded) for name in names}
    assert all(each.candidate.bypass == best[each.direction.estimator] for each in contest)


def test_pairs_are_needed_for_pairs(organism: dm.Session, b: dm.Behaviour) -> None:
    assert "paired_pca" in estimators_for(b, None, True)
    with pytest.raises(DataError, match="pairs: true"):
        search_directions(organism, replace(b, pairs=False), estimators=["paired_pca"])
    with pytest.raises(DataError, match="no estimator 'paired_pc' \\(did you mean 'paired_pca'\\?\\)"):
        search_directions(organism, b, estimators=["paired_pc"])
    with pytest.raises(DataError, match="estimators should be a valid tuple"):
        search_directions(organism, b, estimators="projected")


def test_a_guard_set_is_needed_for_what_looks_at_it(organism: dm.Session, b: dm.Behaviour) -> None:
    unguarded = replace(b, guard=())
    assert "guard_orthogonal" not in {*estimators_for(unguarded, None, True), *estimators_for(unguarded, None, False)}
    with pytest.raises(DataError, match="needs a guard set"):
        search_directions(organism, unguarded, estimators=["guard_orthogonal"])


def test_the_command_compares_and_writes_the_winner(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    options = ("find", "organism", "-b", "refusal", "-o", tmp_path / "d", "--layer", 3, "--max-prompts", 40)
    contest = json.loads(demeanor(*options, "--estimator", "projected", "--estimator", "logistic", "--compare", "--json").out)
    assert {each["estimator"] for each in contest} == {"projected", "logistic"}
    assert dm.load_direction(tmp_path / "d").estimator == contest[0]["estimator"]
    assert "one of them at a time" in demeanor(*options, "--compare", "--rank", 2).sentence
