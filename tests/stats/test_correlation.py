"""Rank correlation against its definition read out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demeanor.stats.correlation import spearman

SETTINGS = settings(derandomize=True, deadline=None, max_examples=60)


def slow_ranks(values: list[float]) -> list[float]:
    return [sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values]


def slow_spearman(x: list[float], y: list[float]) -> float:
    a, b = slow_ranks(x), slow_ranks(y)
    middle = (len(x) + 1) / 2
    over = sum((i - middle) * (j - middle) for i, j in zip(a, b))
    under = math.sqrt(sum((i - middle) ** 2 for i in a) * sum((j - middle) ** 2 for j in b))
    return over / under if under else math.nan


@SETTINGS
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=12))
def test_equals_the_definition_with_ties(pairs: list[tuple[int, int]]) -> None:
    x, y = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    expected = slow_spearman(x, y)
    assert spearman(x, y) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_only_the_order_counts() -> None:
    assert spearman([1.0, 2.0, 3.0, 50.0], [0.1, 0.2, 7.0, 8.0]) == pytest.approx(1.0)
    assert spearman([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1.0)


def test_too_few_or_all_alike_tell_nothing() -> None:
    assert math.isnan(spearman([1.0, 2.0], [1.0, 2.0]))
    assert math.isnan(spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))
