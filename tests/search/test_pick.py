"""Which point of a front is taken."""

from __future__ import annotations

import pytest

import demeanor as dm
from demeanor.errors import CheckFailed, DataError
from demeanor.search.pick import picked

COSTS = [(0.0, 0.2, 0.1), (0.1, 0.01, 0.04), (0.6, 0.0, 0.0)]
POINTS = [
    {"left": left, "drift": drift, "guard": 1 - lost, "shows": left, "answers": None, "lacks": 0.0} for left, drift, lost in COSTS
]  # fmt: skip


@pytest.mark.parametrize(
    ("pick", "number"),
    [("knee", 1), ("2", 2), ("guard>=0.95,drift<=0.02", 1), ("drift <= 0.3", 0), ("guard>=1", 2), ("left<=0.05", 0), ("drift<=1e-3", 2)],
)
def test_a_point_is_taken_by_its_knee_its_number_or_bounds(pick: str, number: int) -> None:
    assert picked(pick, POINTS, COSTS) == number


@pytest.mark.parametrize(
    ("pick", "sentence"),
    [("guard>=0.99,left<=0.1", "the highest guard is 1, the lowest left is 0"), ("3", "points 0 to 2"), ("answers>=0.5", "answers is not known")],
)
def test_a_pick_that_no_point_keeps_says_what_there_is(pick: str, sentence: str) -> None:
    with pytest.raises(CheckFailed, match=sentence):
        picked(pick, POINTS, COSTS)


@pytest.mark.parametrize("pick", ["best", "guard>0.9", "guard>=", "refusals<=0.1", "guard>=0.9;drift<=1", "-1"])
def test_a_pick_that_is_none_is_refused_with_what_may_be_written(pick: str) -> None:
    with pytest.raises(DataError, match=r"bounds such as guard>=0.95,drift<=0.02"):
        dm.SearchPlan(model="organism", behaviour="over-refusal", pick=pick)


def test_a_plan_without_trials_and_minutes_has_a_number_of_trials() -> None:
    plan = dm.SearchPlan(model="organism", behaviour="over-refusal")
    assert plan.most == 256
    assert dm.SearchPlan(model="organism", behaviour="over-refusal", minutes=2).most is None
    assert dm.SearchPlan(model="organism", behaviour="over-refusal", minutes=2, trials=9).most == 9
