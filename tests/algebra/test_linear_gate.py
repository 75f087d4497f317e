"""The linear gate of a writer against the same least squares written out row by row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from demeanor.algebra.linear_gate import gram, linear_gate

SETTINGS = settings(derandomize=True, deadline=None, max_examples=40)


@SETTINGS
@given(
    n=st.integers(1, 9), groups=st.lists(st.tuples(st.integers(1, 30), st.floats(0.1, 5)), min_size=1, max_size=3), size=st.integers(1, 8),
    rank=st.integers(1, 3), ridge=st.floats(1e-4, 1), seed=st.integers(0, 99),
)  # fmt: skip
def test_equals_least_squares_over_stacked_rows(
    n: int, groups: list[tuple[int, float]], size: int, rank: int, ridge: float, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    acting, wanted = (torch.randn(n, columns, generator=rng, dtype=torch.float64) for columns in (size, rank))
    kept = [(torch.randn(m, size, generator=rng, dtype=torch.float64), weight) for m, weight in groups]
    rows = [acting / n**0.5, *((weight / len(inputs)) ** 0.5 * inputs for inputs, weight in kept)]
    scale = torch.cat(rows).square().sum(0).mean()
    stacked = torch.cat([*rows, (ridge * scale) ** 0.5 * torch.eye(size, dtype=torch.float64)])
    target = torch.cat([wanted / n**0.5, torch.zeros(len(stacked) - n, rank, dtype=torch.float64)])
    expected = torch.linalg.lstsq(stacked, target).solution.T
    assert torch.allclose(linear_gate(acting, wanted, kept, ridge), expected, atol=1e-8)


@SETTINGS
@given(n=st.integers(0, 12), size=st.integers(1, 20), block=st.integers(1, 24), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_products_of_columns_are_those_of_the_whole(n: int, size: int, block: int, dtype: torch.dtype) -> None:
    x = torch.randn(n, size, generator=torch.Generator().manual_seed(size), dtype=dtype)
    assert torch.allclose(gram(x, block), x.T @ x, atol=1e-5)


def test_inputs_that_stand_apart_are_acted_on_and_others_left() -> None:
    rng = torch.Generator().manual_seed(0)
    acting, kept = torch.randn(20, 16, generator=rng), torch.randn(400, 16, generator=rng)
    acting[:, 0] += 8
    wanted = torch.full((20, 1), 3.0)
    gate = linear_gate(acting, wanted, [(kept, 1.0)], 1e-6).float()
    assert (acting @ gate.T - wanted).abs().mean() < 0.5
    assert (kept @ gate.T).abs().mean() < 0.5


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_the_gate_is_linear_in_what_is_wanted(strength: float) -> None:
    rng = torch.Generator().manual_seed(1)
    acting, kept, wanted = (torch.randn(*shape, generator=rng) for shape in ((6, 5), (40, 5), (6, 2)))
    one, other = (linear_gate(acting, scale * wanted, [(kept, 1.0)], 1e-3) for scale in (1.0, strength))
    assert torch.allclose(strength * one, other, atol=1e-6)
