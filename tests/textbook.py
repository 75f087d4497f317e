"""What tests of the algebra share: random values, and products, lengths and projections as a textbook has them."""

from __future__ import annotations

import math

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

SETTINGS = settings(derandomize=True, deadline=None, max_examples=40)
SEEDS = st.integers(0, 2**32 - 1)
DTYPES = st.sampled_from([torch.float32, torch.float64])


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dot(a: Tensor, b: Tensor) -> float:
    return math.fsum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def length(a: Tensor) -> float:
    return math.sqrt(dot(a, a))


def without(x: Tensor, along: Tensor) -> Tensor:
    """x minus its part along a vector of any length: the textbook projection, one pass."""
    return x - dot(x, along) / dot(along, along) * along
