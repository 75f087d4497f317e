"""Rounding that keeps an edit, against exhaustive search and against rounding to the nearest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from demeanor.algebra.rounding import DAMPING, Grid, carried, carriers, settled

SETTINGS = settings(derandomize=True, deadline=None, max_examples=25)
SEEDS = st.integers(0, 2**32 - 1)
FP4 = torch.tensor([-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6])


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def basis_of(seed: int, k: int, d: int) -> Tensor:
    return torch.linalg.qr(gaussian(seed, d, k).double()).Q.T.float().contiguous()


def ablated(seed: int, grid: Grid, basis: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """A matrix of stored values [d, n], and the same without what it holds along the basis."""
    weight = grid.values(grid.nearest(gaussian(seed + 1, basis.shape[1], n)))
    return weight, weight - basis.T @ (basis @ weight)


@SETTINGS
@given(seed=SEEDS, d=st.integers(48, 160), k=st.sampled_from([1, 2, 4]), dtype=st.sampled_from([torch.bfloat16, torch.float16]))
def test_few_rows_carry_the_error_of_all(seed: int, d: int, k: int, dtype: torch.dtype) -> None:
    basis = basis_of(seed, k, d)
    weight = gaussian(seed + 1, d, 40).to(dtype).float()
    exact = weight - basis.T @ (basis @ weight)
    nearest = exact.to(dtype).float()
    by = carriers(basis)
    values, left = carried(exact[by.rows], basis @ (nearest - exact), by, lambda values: values.to(dtype).float())
    stored = nearest.clone()
    stored[by.rows] = values
    assert torch.allclose(basis @ (stored - exact), left, atol=1e-5)
    assert left.norm() < 5e-4 * (basis @ weight).norm()
    assert (stored - exact).norm() < 1.8 * (nearest - exact).norm()


@SETTINGS
@given(seed=SEEDS, d=st.integers(8, 160), k=st.sampled_from([1, 2, 4]))
def test_each_carrying_row_takes_what_it_and_those_after_it_can(seed: int, d: int, k: int) -> None:
    by = carriers(basis_of(seed, k, d))
    along = by.basis.double()
    left = DAMPING * along[:, -1].square().sum() * torch.eye(k, dtype=torch.float64)
    for place in reversed(range(len(by.rows))):
        left += torch.outer(along[:, place], along[:, place])
        assert torch.allclose(by.gains[place].double(), torch.linalg.solve(left, along[:, place]), rtol=1e-5, atol=1e-6)


@SETTINGS
@given(seed=SEEDS, k=st.sampled_from([1, 4]), levels=st.sampled_from([FP4, torch.arange(-8.0, 8), torch.arange(-128.0, 128)]))
def test_coarse_values_are_settled(seed: int, k: int, levels: Tensor) -> None:
    basis = basis_of(seed, k, 256)
    grid = Grid(levels, (0.5 + gaussian(seed + 2, 256, 4).abs().repeat_interleave(6, 1)) * 3 / levels.max())
    _, exact = ablated(seed, grid, basis, 24)
    codes, left = settled(exact, basis, grid)
    nearest = grid.values(grid.nearest(exact))
    assert torch.allclose(basis @ (grid.values(codes) - exact), left, atol=1e-4)
    assert left.norm() < 0.1 * (basis @ (nearest - exact)).norm()
    assert (grid.values(codes) - exact).norm() < 2.5 * (nearest - exact).norm()  # few rows: their changes are many beside the root of all


@pytest.mark.parametrize("seed", range(5))
def test_no_single_change_would_leave_less(seed: int) -> None:
    """Tried one by one, every value taken to the one above and below."""
    basis = basis_of(seed, 1, 12)
    grid = Grid(torch.arange(-8.0, 8), torch.ones(12, 1))
    exact = gaussian(seed + 1, 12, 1) * 2
    codes, left = settled(exact, basis, grid)
    for row in range(12):
        for way in (1, -1):
            other = codes.clone()
            other[row] = (other[row] + way).clamp(0, 15)
            assert (basis @ (grid.values(other) - exact)).abs() >= left.abs() - 1e-6


def test_a_block_of_nothing_stays_nothing() -> None:
    grid = Grid(FP4, torch.zeros(8, 1))
    codes, left = settled(torch.zeros(8, 3), basis_of(0, 1, 8), grid)
    assert not grid.values(codes).any()
    assert not left.any()
