"""Mergeable class moments: n, mean and per-channel variance of activations, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Of one class: `n` rows, `mean` and population `variance` [..., d_model], float64."""

    n: int
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """Moments of `values` [row, ..., d_model]."""
        values = values.double()
        return cls(values.shape[0], values.mean(0), values.var(0, unbiased=False))

    def merge(self, other: Moments) -> Moments:
        """Moments of both samples together (Chan, Golub and LeVeque 1979)."""
        n = self.n + other.n
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.n / n)
        variance = (self.n * self.variance + other.n * other.variance) / n + gap.square() * (self.n * other.n / n**2)
        return Moments(n, mean, variance)
