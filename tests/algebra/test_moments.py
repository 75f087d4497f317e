"""Moments: what is merged equals what is fitted in one go."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from demeanor.algebra.moments import Moments

SETTINGS = settings(derandomize=True, deadline=None, max_examples=40)
SEEDS = st.integers(0, 2**32 - 1)


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@SETTINGS
@given(seed=SEEDS, n=st.integers(1, 9), sites=st.integers(1, 3), d=st.integers(1, 6), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_moments_are_per_channel_mean_and_population_variance(seed: int, n: int, sites: int, d: int, dtype: torch.dtype) -> None:
    """Of any dtype, every channel of every site agrees with the statistics module, in float64."""
    values = gaussian(seed, n, sites, d).to(dtype)
    found = Moments.of(values)
    assert found.n == n
    assert found.mean.dtype == found.variance.dtype == torch.float64
    for site in range(sites):
        for channel in range(d):
            column = values[:, site, channel].tolist()
            assert float(found.mean[site, channel]) == pytest.approx(statistics.fmean(column), abs=1e-12)
            assert float(found.variance[site, channel]) == pytest.approx(statistics.pvariance(column), abs=1e-12)


@SETTINGS
@given(seed=SEEDS, sizes=st.lists(st.integers(1, 7), min_size=2, max_size=4), shift=st.sampled_from([0.0, 3.0, -1e3]), d=st.integers(1, 6))
def test_merging_any_number_of_parts_equals_refitting(seed: int, sizes: list[int], shift: float, d: int) -> None:
    """Parts of unequal sizes and unlike means, merged one after another, give the moments of all rows."""
    parts = [gaussian(seed + number, size, 2, d) * (1 + number) + shift * number for number, size in enumerate(sizes)]
    merged = Moments.of(parts[0])
    for part in parts[1:]:
        merged = merged.merge(Moments.of(part))
    whole = Moments.of(torch.cat(parts))
    assert merged.n == whole.n
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(merged.variance, whole.variance, rtol=1e-9, atol=1e-12)


def test_merge_keeps_the_variance_of_a_small_spread_far_from_zero() -> None:
    """Activations with a large common offset do not lose the digits of their spread."""
    values = 1e6 + 1e-2 * gaussian(0, 40, 5)
    merged = Moments.of(values[:13]).merge(Moments.of(values[13:]))
    exact = (values - 1e6).var(0, unbiased=False)
    torch.testing.assert_close(merged.variance, exact, rtol=1e-5, atol=0)
