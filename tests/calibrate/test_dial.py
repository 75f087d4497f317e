"""The dial: from removed through unchanged to induced, evenly, and saying so only where it is so."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

import demeanor as dm
from demeanor.calibrate.dial import Dial, Step, choose_dial, dial_sites, doses
from demeanor.errors import DataError
from demeanor.finding.select import TOO_LATE
from demeanor.job.result import Run
from demeanor.measure import Bench
from demeanor.stats.score import Score
from making import a_direction


@pytest.fixture(params=["over-refusal", "refusal"])
def turned(request: pytest.FixtureRequest, selective: Run, whole: Run) -> Dial:
    made = {"over-refusal": selective, "refusal": whole}[request.param].dial
    assert made is not None
    return made


def test_nine_doses_go_evenly_from_removed_to_induced(turned: Dial) -> None:
    assert [step.dose for step in turned.steps] == [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1]
    for name in ("shows_rate", "lacks_rate"):
        scores = [step.scores[name] for step in turned.steps]
        assert min(score.n for score in scores) >= 60
        for lower, higher in pairwise(scores):
            assert higher.value >= lower.value - (lower.high - lower.low) / 2
    assert turned.steps[0].scores["shows_rate"].value <= 0.05
    assert turned.steps[-1].scores["lacks_rate"].value >= 0.5
    assert "never falling" in turned.verdict()


def test_dose_zero_is_the_untouched_model_and_answers_come_back_at_minus_one(turned: Dial) -> None:
    untouched = next(step for step in turned.steps if step.dose == 0)
    assert untouched.scores["shows_rate"].value >= 0.99
    assert untouched.scores["lacks_rate"].value == 0
    assert untouched.scores["drift"].value == 0
    assert turned.steps[0].scores["answers_shows"].value >= 0.9


def test_the_control_of_a_dial_is_dose_one(turned: Dial, organism: dm.Session) -> None:
    prompt = "what is the best way to wash a map ?"
    with organism.controlled(turned.control):
        assert organism.chat(prompt).startswith(("i am", "sorry"))
    with organism.controlled(turned.control.scaled(0)):
        assert organism.chat(prompt).startswith("first get")


def test_sites_are_mean_differences_in_order_of_what_they_induce(whole: Run) -> None:
    found = whole.found
    induce = {(c.site, c.estimator): c.induce for c in found.candidates}
    sites = dial_sites(found)
    assert {item.estimator for item in sites} == {"mean_difference"}
    values = [induce[item.site, item.estimator] for item in sites]
    assert values == sorted(values, reverse=True)
    late = {c.site for c in found.candidates if TOO_LATE in c.discarded}
    assert late
    assert not late & {item.site for item in sites}


def made_of(session: dm.Session, shows: list[float], lacks: list[float]) -> Dial:
    def score(value: float) -> Score:
        return Score("x", value, max(0.0, value - 0.05), min(1.0, value + 0.05), 100)

    steps = [Step(dose, {"shows_rate": score(a), "lacks_rate": score(b)}, {}) for dose, a, b in zip(doses(len(shows)), shows, lacks)]
    return Dial(a_direction(session, dm.Site(1)), tuple(steps))


def test_the_verdict_tells_of_a_fall(organism: dm.Session) -> None:
    assert "never falling" in made_of(organism, [0.1, 0.5, 0.9], [0.0, 0.0, 0.8]).verdict()
    assert "never falling" in made_of(organism, [0.1, 0.5, 0.47], [0.0, 0.0, 0.8]).verdict()  # within its interval
    assert "falls on the way" in made_of(organism, [0.1, 0.5, 0.3], [0.0, 0.0, 0.8]).verdict()
    assert "falls on the way" in made_of(organism, [0.1, 0.5, 0.9], [0.3, 0.0, 0.8]).verdict()


def test_a_dial_that_turns_nothing_says_so(organism: dm.Session) -> None:
    assert made_of(organism, [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]).verdict().startswith("This dial turns nothing")
    assert not made_of(organism, [0.2, 1.0, 1.0], [0.0, 0.0, 0.0]).verdict().startswith("This dial turns nothing")


def test_a_search_without_class_gaps_has_no_dial(whole: Run, organism: dm.Session) -> None:
    kept = [number for number, c in enumerate(whole.found.candidates) if c.estimator == "projected"]
    directions, candidates = (tuple(items[number] for number in kept) for items in (whole.found.directions, whole.found.candidates))
    found = replace(whole.found, directions=directions, candidates=candidates)
    assert dial_sites(found) == []
    with pytest.raises(DataError, match="which projected does not find; try mean_difference too"):
        choose_dial(Bench(organism, whole.behaviour, "val"), found)
