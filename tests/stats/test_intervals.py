"""Intervals and tests against closed forms, enumeration and simulation."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from demeanor.stats import intervals
from demeanor.stats.score import Better

SETTINGS = settings(derandomize=True, deadline=None, max_examples=50)
Z = 1.959963984540054  # the normal's 97.5 % point


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
)
def test_wilson_agrees_with_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe (1998), Statistics in Medicine 17, table I, method 3."""
    assert intervals.wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@SETTINGS
@given(n=st.integers(1, 5000), share=st.floats(0, 1), level=st.sampled_from([0.5, 0.8, 0.95, 0.99]))
def test_wilson_bounds_are_the_proportions_the_data_just_do_not_reject(n: int, share: float, level: float) -> None:
    """Each bound p solves (p_hat - p)^2 = z^2 p (1 - p) / n; the interval lies in [0, 1] around p_hat."""
    successes = round(share * n)
    p_hat = successes / n
    z = {0.5: 0.6744897501960817, 0.8: 1.2815515655446004, 0.95: Z, 0.99: 2.5758293035489004}[level]
    low, high = intervals.wilson(successes, n, level)
    assert 0 <= low <= p_hat + 1e-12
    assert p_hat - 1e-12 <= high <= 1
    assert low < high
    for bound in (low, high):
        assert (p_hat - bound) ** 2 == pytest.approx(z * z * bound * (1 - bound) / n, abs=1e-12)


@pytest.mark.parametrize("n", [1, 7, 400])
def test_wilson_at_the_ends(n: int) -> None:
    """None of n and all of n mirror each other, with the closed form n / (n + z^2)."""
    assert intervals.wilson(n, n) == pytest.approx((n / (n + Z * Z), 1.0))
    assert intervals.wilson(0, n) == pytest.approx((0.0, Z * Z / (n + Z * Z)), abs=1e-12)


def test_wilson_of_nothing_says_nothing() -> None:
    """No observation: the whole range."""
    assert intervals.wilson(0, 0) == (0.0, 1.0)


def enumerated_mcnemar(before: list[bool], after: list[bool]) -> float:
    """Every way the discordant pairs could have gone: the share at least as lopsided as what was seen."""
    signs = [1 if now else -1 for was, now in zip(before, after, strict=True) if was != now]
    ways = list(product((-1, 1), repeat=len(signs)))
    return sum(abs(sum(way)) >= abs(sum(signs)) for way in ways) / len(ways)


@SETTINGS
@given(pairs=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=11))
def test_mcnemar_is_exact(pairs: list[tuple[bool, bool]]) -> None:
    """Equal to enumerating every outcome; the same for a change the other way."""
    before, after = [was for was, _ in pairs], [now for _, now in pairs]
    assert intervals.mcnemar(before, after) == pytest.approx(enumerated_mcnemar(before, after), abs=1e-12)
    assert intervals.mcnemar(before, after) == intervals.mcnemar(after, before)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (6, 0, 0.03125), (0, 10, 2 / 1024), (1, 9, 22 / 1024), (0, 2000, 0.0)],
)
def test_mcnemar_depends_on_what_changed_alone(gained: int, lost: int, p: float) -> None:
    """Pairs that stayed as they were do not count, however many; thousands of changes do not overflow."""
    before = [False] * gained + [True] * lost + [True] * 50 + [False] * 30
    after = [True] * gained + [False] * lost + [True] * 50 + [False] * 30
    assert intervals.mcnemar(before, after) == pytest.approx(p, abs=1e-15)


def test_mcnemar_refuses_unpaired_outcomes() -> None:
    """Lists of unlike length are no pairs."""
    with pytest.raises(ValueError, match="same length"):
        intervals.mcnemar([True, False], [True])


@pytest.mark.parametrize(("level", "at_least", "at_most"), [(0.95, 0.88, 0.985), (0.5, 0.4, 0.6)])
def test_bootstrap_covers_the_mean_as_often_as_it_says(level: float, at_least: float, at_most: float) -> None:
    """Over 250 samples of 40 skewed values; percentile intervals cover a little less than their level."""
    rng = torch.Generator().manual_seed(0)
    hits = 0
    for seed in range(250):
        values = -torch.log1p(-torch.rand(40, generator=rng, dtype=torch.float64))  # exponential, mean 1
        low, high = intervals.bootstrap(values, repeats=400, level=level, seed=seed)
        hits += low <= 1.0 <= high
    assert at_least < hits / 250 < at_most


@pytest.mark.parametrize("n", [300, 3000])
def test_bootstrap_is_as_wide_as_theory_says(n: int) -> None:
    """Plain and weighted, by the delta method: 1.96 sqrt(sum w^2 (x - m)^2) / sum w; n = 3000 goes in several chunks."""
    values, weights = 5 + gaussian(0, n), torch.arange(1, n + 1, dtype=torch.float64)
    for weight in (None, weights):
        w = torch.ones(n, dtype=torch.float64) if weight is None else weight
        centre = float((w * values).sum() / w.sum())
        half = Z * math.sqrt(float((w * w * (values - centre) ** 2).sum())) / float(w.sum())
        low, high = intervals.bootstrap(values, weight, repeats=1500)
        assert (low + high) / 2 == pytest.approx(centre, abs=0.1 * half)
        assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_bootstrap_is_the_same_every_time() -> None:
    """A run can be repeated to the digit; another seed resamples anew."""
    values = gaussian(1, 50)
    assert intervals.bootstrap(values, repeats=500) == intervals.bootstrap(values, repeats=500)
    assert intervals.bootstrap(values, repeats=500) != intervals.bootstrap(values, repeats=500, seed=1)


def test_bootstrap_is_paired_and_ignores_the_scale_of_weights() -> None:
    """A difference that is the same in every pair has no spread; weights count relative to each other."""
    before = gaussian(2, 30)
    assert intervals.bootstrap((before + 0.25) - before, repeats=200) == pytest.approx((0.25, 0.25))
    weights = torch.arange(1, 31)
    assert intervals.bootstrap(before, weights, repeats=200) == pytest.approx(intervals.bootstrap(before, 7 * weights, repeats=200))


def test_bootstrap_of_nothing_is_not_a_number() -> None:
    """No rows: no interval, rather than a wrong one."""
    assert all(math.isnan(bound) for bound in intervals.bootstrap(torch.zeros(0)))


@SETTINGS
@given(outcomes=st.lists(st.booleans(), min_size=1, max_size=60), better=st.sampled_from(["lower", "higher", "neither"]))
def test_rate_is_the_share_with_its_wilson_interval(outcomes: list[bool], better: Better) -> None:
    """Value, n, interval and which way is better are those of the outcomes given."""
    score = intervals.rate("shows_rate", outcomes, better)
    assert (score.name, score.n, score.better) == ("shows_rate", len(outcomes), better)
    assert score.value == outcomes.count(True) / len(outcomes)
    assert (score.low, score.high) == intervals.wilson(outcomes.count(True), len(outcomes))


def test_rate_of_nothing_has_no_value() -> None:
    """Where nothing was measured: nan, n = 0."""
    score = intervals.rate("guard_rate", [])
    assert math.isnan(score.value)
    assert score.n == 0


@SETTINGS
@given(rows=st.lists(st.tuples(st.integers(-20, 20), st.integers(1, 9)), min_size=1, max_size=12))
def test_mean_weighs_each_value(rows: list[tuple[int, int]]) -> None:
    """sum(w x) / sum(w), as if each value stood there w times; n is the number of values; the interval is around it."""
    values = torch.tensor([value for value, _ in rows], dtype=torch.float64)
    weights = torch.tensor([weight for _, weight in rows], dtype=torch.float64)
    score = intervals.mean("drift", values, weights, "lower")
    repeated = [value for value, weight in rows for _ in range(weight)]
    assert score.value == pytest.approx(sum(repeated) / len(repeated), abs=1e-12)
    assert (score.n, score.better) == (len(rows), "lower")
    assert float(values.min()) - 1e-9 <= score.low <= score.value + 1e-9
    assert score.value - 1e-9 <= score.high <= float(values.max()) + 1e-9


def test_mean_without_weights_and_of_nothing() -> None:
    """Equal weights by default; no values: nan, n = 0."""
    score = intervals.mean("drift", torch.tensor([1.0, 2.0, 6.0]))
    assert score.value == pytest.approx(3.0)
    assert (score.low, score.high) == pytest.approx((1.0, 6.0))
    nothing = intervals.mean("drift", torch.zeros(0))
    assert nothing.n == 0
    assert math.isnan(nothing.value)
    assert math.isnan(nothing.low)
    assert math.isnan(nothing.high)


def test_wilson_covers_as_often_as_it_says() -> None:
    """Exact coverage at n = 100, averaged over proportions from .05 to .95."""
    n = 100
    k = torch.arange(n + 1, dtype=torch.float64)
    bounds = torch.tensor([intervals.wilson(successes, n) for successes in range(n + 1)], dtype=torch.float64)
    shares = torch.linspace(0.05, 0.95, 1801, dtype=torch.float64)[:, None]
    chances = torch.distributions.Binomial(n, probs=shares).log_prob(k).exp()
    covered = ((bounds[:, 0] <= shares) & (shares <= bounds[:, 1])).double()
    assert float((chances * covered).sum(1).mean()) == pytest.approx(0.95, abs=0.015)


@pytest.mark.slow
def test_the_paired_bootstrap_covers_as_often_as_it_says() -> None:
    """2,000 samples of 300 paired differences of normal data whose mean difference is .2."""
    rows, trials, truth = 300, 2000, 0.2
    before = gaussian(3, trials, rows)
    after = before + truth + 0.7 * gaussian(4, trials, rows)
    covered = 0
    for number, change in enumerate(after - before):
        low, high = intervals.bootstrap(change, repeats=400, seed=number)
        covered += low <= truth <= high
    assert covered / trials == pytest.approx(0.95, abs=0.015)


@SETTINGS
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_step_down_of_its_definition(p: list[float]) -> None:
    """Each adjusted p is the largest of (m - j + 1) p_(j) over the tests ranked no later, at most 1."""
    ranked = sorted(p)
    for value, adjusted in zip(p, intervals.holm(p)):
        last = max(place for place, other in enumerate(ranked) if other == value)
        assert adjusted == pytest.approx(min(1.0, max((len(p) - place) * ranked[place] for place in range(last + 1))))


def test_holm_keeps_the_share_of_experiments_with_a_false_find() -> None:
    """Ten true nulls at a time: at most 5 % of families report anything, where unadjusted ones report in 40 %."""
    families = torch.rand((4000, 10), generator=torch.Generator().manual_seed(5), dtype=torch.float64).tolist()
    plain, together = (sum(min(f(family)) < 0.05 for family in families) / len(families) for f in (list, intervals.holm))
    assert plain > 0.35
    assert together == pytest.approx(0.05, abs=0.015)
