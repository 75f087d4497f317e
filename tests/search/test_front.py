"""Fronts against the definition, and volumes against counting cells."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demeanor.search.confirming import limits_hold
from demeanor.search.front import beats, front, knee, spread, surely_beats, volume
from demeanor.search.study import Limits

SETTINGS = settings(derandomize=True, deadline=None, max_examples=40)
COORDINATE = st.integers(0, 4).map(float)
POINTS = st.integers(1, 3).flatmap(lambda width: st.lists(st.tuples(*[COORDINATE] * width), min_size=1, max_size=8))


@SETTINGS
@given(POINTS)
def test_a_front_holds_what_nothing_beats_and_beats_or_equals_the_rest(points: list[tuple[float, ...]]) -> None:
    kept = front(points)
    assert kept
    for number, point in enumerate(points):
        better = [other for other in points if all(a <= b for a, b in zip(other, point)) and other != point]
        assert (number in kept) == (not better and point not in points[:number])


@SETTINGS
@given(POINTS)
def test_a_volume_is_the_cells_that_some_point_covers(points: list[tuple[float, ...]]) -> None:
    worst = (5.0,) * len(points[0])
    cells = itertools.product(range(5), repeat=len(worst))
    covered = sum(any(all(a <= b for a, b in zip(point, cell)) for point in points) for cell in cells)
    assert volume(points, worst) == pytest.approx(covered)


@SETTINGS
@given(POINTS, st.integers(1, 5))
def test_points_that_are_spread_are_as_many_as_asked_and_hold_the_best_of_the_first_cost(points: list[tuple[float, ...]], count: int) -> None:
    chosen = spread(points, count)
    assert len(chosen) == len(set(chosen)) == min(count, len(points))
    if count > 1 and len(points) > 1:
        assert min(points[number][0] for number in chosen) == min(point[0] for point in points)


def test_the_knee_lies_between_the_ends() -> None:
    assert knee([(0.0, 1.0), (0.1, 0.1), (1.0, 0.0)]) == 1
    assert knee([(0.5, 3.0)]) == 0


def test_to_beat_is_to_be_no_worse_and_somewhere_better() -> None:
    assert beats((0.0, 1.0), (0.0, 2.0))
    assert not beats((0.0, 1.0), (0.0, 1.0))
    assert not beats((0.0, 2.0), (1.0, 1.0))


def test_what_is_worse_by_little_is_beaten_by_what_is_better_by_much() -> None:
    assert surely_beats((0.02, 0.005), (0.9, 0.0), slack=0.01)
    assert not surely_beats((0.02, 0.05), (0.9, 0.0), slack=0.01)
    assert not surely_beats((0.02, 0.0), (0.025, 0.0), slack=0.01)


@pytest.mark.parametrize(("guard", "drift", "untouched", "holds"), [
    (0.67, 0.1, 0.67, True), (0.64, 0.1, 0.67, True), (0.6, 0.1, 0.67, False), (0.96, 0.1, 1.0, True), (0.94, 0.1, 1.0, False),
    (0.67, 0.6, 0.67, False), (None, 0.1, None, True),
])  # fmt: skip
def test_the_guard_is_to_keep_its_share_of_what_was_there(guard: float | None, drift: float, untouched: float | None, holds: bool) -> None:
    """A real model refuses two in three of the guard untouched; no control can be asked for 95 % of all."""
    assert limits_hold(Limits(0.95, 0.5), {"guard": guard, "drift": drift}, untouched) is holds
