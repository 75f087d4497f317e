"""Intervals and tests: Wilson, bootstrap, exact McNemar, Holm. 95 % unless told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from .score import Better, Score


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927); (0, 1) when nothing was observed."""
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Rounding must not put the ends inside the value they bound.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def bootstrap(
    values: Tensor, weights: Tensor | None = None, *, repeats: int = 10_000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the (weighted) mean of values [n] over resampled rows.

    With paired differences as values this is the paired bootstrap. weights [n] make it the interval of
    sum(w x) / sum(w), rows still being what is resampled.
    """
    values = values.double()
    weights = torch.ones_like(values) if weights is None else weights.double()
    n = len(values)
    if n == 0:
        return math.nan, math.nan
    rng = torch.Generator().manual_seed(seed)
    means = []
    per_chunk = max(1, 2_000_000 // n)
    for start in range(0, repeats, per_chunk):
        rows = torch.randint(n, (min(per_chunk, repeats - start), n), generator=rng)
        means.append((values * weights)[rows].sum(1) / weights[rows].sum(1))
    quantiles = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.cat(means).quantile(quantiles).tolist()
    return low, high


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Exact two-sided p that paired outcomes change as often one way as the other (binomial on discordant pairs)."""
    if len(before) != len(after):
        raise ValueError("paired outcomes must have the same length")
    gained = sum(not b and a for b, a in zip(before, after))
    lost = sum(b and not a for b, a in zip(before, after))
    n, k = gained + lost, min(gained, lost)
    if n == 0:
        return 1.0
    return min(1.0, float(2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): p-values that hold for all of the tests together, in the order given."""
    adjusted, least = [1.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = least
    return adjusted


def rate(name: str, outcomes: Sequence[bool], better: Better = "neither") -> Score:
    """The share of true outcomes, with its Wilson interval."""
    n, k = len(outcomes), sum(outcomes)
    low, high = wilson(k, n) if n else (math.nan, math.nan)
    return Score(name, k / n if n else math.nan, low, high, n, better)


def mean(name: str, values: Tensor, weights: Tensor | None = None, better: Better = "neither") -> Score:
    """The (weighted) mean of values [n], with its bootstrap interval."""
    if len(values) == 0:
        return Score(name, math.nan, math.nan, math.nan, 0, better)
    weights = torch.ones_like(values) if weights is None else weights
    low, high = bootstrap(values, weights)
    return Score(name, float((values * weights).sum() / weights.sum()), low, high, len(values), better)
