"""Whether two scores put the same things in the same order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation, equal values sharing their mean rank; not a number for fewer than three, or where one side is constant."""
    if len(x) != len(y):
        raise ValueError("paired scores must have the same length")
    if len(x) < 3:
        return math.nan
    a, b = (_ranks(torch.tensor(values, dtype=torch.float64)) for values in (x, y))
    a, b = a - a.mean(), b - b.mean()
    spread = float(a.norm() * b.norm())
    return float(a @ b) / spread if spread > 0 else math.nan


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1; equal values have the mean of theirs."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = (last - (counts.double() - 1) / 2)[inverse]
    return ranks
