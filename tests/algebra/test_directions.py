"""Directions: what each estimator promises to be orthogonal to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from demeanor.algebra import directions
from textbook import DTYPES, SEEDS, SETTINGS, dot, gaussian, length, without


@SETTINGS
@given(seed=SEEDS, sites=st.integers(1, 4), d=st.integers(1, 9), dtype=DTYPES)
def test_mean_difference_points_from_lacks_to_shows(seed: int, sites: int, d: int, dtype: torch.dtype) -> None:
    """Per site: adding it raises the behaviour. Swapping the classes turns it round."""
    shows, lacks = gaussian(seed, sites, d).to(dtype), gaussian(seed + 1, sites, d).to(dtype)
    found = directions.mean_difference(shows, lacks)
    for site in range(sites):
        gap = shows[site].double() - lacks[site].double()
        torch.testing.assert_close(found[site].double(), gap / length(gap), rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)
    torch.testing.assert_close(directions.mean_difference(lacks, shows), -found)


@SETTINGS
@given(seed=SEEDS, sites=st.integers(1, 4), d=st.integers(2, 9), offset=st.sampled_from([0.0, 1.0, 100.0]))
def test_projected_leaves_the_lacks_mean_where_it_is(seed: int, sites: int, d: int, offset: float) -> None:
    """A unit vector in span(m+, m-), orthogonal to m- however large m- is, and on the side of m+."""
    shared = offset * gaussian(seed + 2, d)
    shows, lacks = gaussian(seed, sites, d) + shared, gaussian(seed + 1, sites, d) + shared
    found = directions.projected(shows, lacks)
    for r, up, down in zip(found, shows, lacks, strict=True):
        assert length(r) == pytest.approx(1, abs=1e-12)
        assert abs(dot(r, down)) < 1e-12 * length(down)
        assert dot(r, up) > 0
        assert length(without(without(r, down), without(up, down))) < 1e-6
        after = down - dot(r, down) * r
        torch.testing.assert_close(after, down, rtol=0, atol=1e-10)


@SETTINGS
@given(seed=SEEDS, sites=st.integers(1, 4), d=st.integers(3, 9))
def test_guard_orthogonal_does_not_move_the_guard_along_its_own_difference(seed: int, sites: int, d: int) -> None:
    """A unit vector orthogonal to guard - lacks, equal to the mean difference with that part taken out."""
    shows, lacks, guard = gaussian(seed, sites, d), gaussian(seed + 1, sites, d), gaussian(seed + 2, sites, d)
    found = directions.guard_orthogonal(shows, lacks, guard)
    for r, up, down, kept in zip(found, shows, lacks, guard, strict=True):
        assert abs(dot(r, kept - down)) < 1e-11 * length(kept - down)
        expected = without(up - down, kept - down)
        torch.testing.assert_close(r, expected / length(expected), rtol=0, atol=1e-9)


@pytest.mark.parametrize("factor", [1.0, 2.5, -0.5])
def test_guard_orthogonal_is_zero_only_where_the_differences_coincide(factor: float) -> None:
    """At a site where guard and shows share the whole direction nothing is left; other sites keep theirs."""
    shows, lacks, guard = gaussian(0, 2, 16), gaussian(1, 2, 16), gaussian(2, 2, 16)
    guard[0] = lacks[0] + factor * (shows[0] - lacks[0]) + 1e-6 * gaussian(3, 16)
    found = directions.guard_orthogonal(shows, lacks, guard)
    assert not found[0].any()
    assert length(found[1]) == pytest.approx(1)


def test_guard_orthogonal_equals_the_mean_difference_where_the_guard_is_like_lacks() -> None:
    """No guard difference: nothing to keep clear of."""
    shows, lacks = gaussian(0, 3, 8), gaussian(1, 3, 8)
    torch.testing.assert_close(directions.guard_orthogonal(shows, lacks, lacks), directions.mean_difference(shows, lacks))
