"""Rounding that keeps an edit on fine grids, against rounding to the nearest."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from demeanor.algebra.rounding import DAMPING, carried, carriers

SETTINGS = settings(derandomize=True, deadline=None, max_examples=25)
SEEDS = st.integers(0, 2**32 - 1)


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def basis_of(seed: int, k: int, d: int) -> Tensor:
    return torch.linalg.qr(gaussian(seed, d, k).double()).Q.T.float().contiguous()


@SETTINGS
@given(seed=SEEDS, d=st.integers(48, 160), k=st.sampled_from([1, 2, 4]), dtype=st.sampled_from([torch.bfloat16, torch.float16]))
def test_few_rows_carry_the_error_of_all(seed: int, d: int, k: int, dtype: torch.dtype) -> None:
    basis = basis_of(seed, k, d)
    weight = gaussian(seed + 1, d, 40).to(dtype).float()
    exact = weight - basis.T @ (basis @ weight)
    nearest = exact.to(dtype).float()
    by = carriers(basis.numpy())
    values, found = carried(exact[by.rows].numpy(), (basis @ (nearest - exact)).numpy(), by, lambda values: torch.from_numpy(values).to(dtype).float().numpy())
    stored, left = nearest.clone(), torch.from_numpy(found)
    stored[by.rows] = torch.from_numpy(values)
    assert torch.allclose(basis @ (stored - exact), left, atol=1e-5)
    assert left.norm() < 5e-4 * (basis @ weight).norm()
    assert (stored - exact).norm() < 1.8 * (nearest - exact).norm()


@SETTINGS
@given(seed=SEEDS, d=st.integers(8, 160), k=st.sampled_from([1, 2, 4]))
def test_each_carrying_row_takes_what_it_and_those_after_it_can(seed: int, d: int, k: int) -> None:
    by = carriers(basis_of(seed, k, d).numpy())
    along = torch.from_numpy(by.basis).double()
    left = DAMPING * along[:, -1].square().sum() * torch.eye(k, dtype=torch.float64)
    for place in reversed(range(len(by.rows))):
        left += torch.outer(along[:, place], along[:, place])
        assert torch.allclose(torch.from_numpy(by.gains[place]).double(), torch.linalg.solve(left, along[:, place]), rtol=1e-5, atol=1e-6)
