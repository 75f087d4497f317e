"""Unit vectors and orthonormal bases."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from demeanor.algebra import bases
from textbook import DTYPES, SEEDS, SETTINGS, dot, gaussian, length, without

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}


def basis_of(seed: int, k: int, d: int) -> Tensor:
    """Orthonormal rows [k, d], by QR: not by what is under test."""
    return torch.linalg.qr(gaussian(seed, d, k)).Q.T.contiguous()


@SETTINGS
@given(seed=SEEDS, sites=st.integers(1, 4), d=st.integers(1, 9), exponent=st.integers(-6, 6), dtype=DTYPES)
def test_unit_has_length_one_and_points_the_same_way(seed: int, sites: int, d: int, exponent: int, dtype: torch.dtype) -> None:
    """Per row of [..., d], whatever the scale, in the dtype given."""
    x = (gaussian(seed, sites, d) * 10.0**exponent).to(dtype)
    found = bases.unit(x)
    assert found.dtype == dtype
    for row, one in zip(x.double(), found.double(), strict=True):
        torch.testing.assert_close(one, row / length(row), rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unit_of_zero_is_zero_beside_rows_that_are_not(dtype: torch.dtype) -> None:
    """A site where nothing differs gives no direction, not NaN."""
    found = bases.unit(torch.tensor([[0.0, 0.0], [3.0, -4.0]], dtype=dtype))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [0.6, -0.8]], dtype=dtype))


@SETTINGS
@given(seed=SEEDS, n=st.integers(1, 5), d=st.integers(1, 9), data=st.data(), dtype=DTYPES)
def test_reject_removes_what_lies_in_the_basis_and_nothing_else(seed: int, n: int, d: int, data: st.DataObject, dtype: torch.dtype) -> None:
    """Equal to subtracting each component in turn; what is left is orthogonal to every row of the basis."""
    k = data.draw(st.integers(0, d))
    basis, x = basis_of(seed, k, d).to(dtype), gaussian(seed + 1, n, d).to(dtype)
    left = bases.reject(x, basis)
    for row, found in zip(x.double(), left.double(), strict=True):
        expected = row
        for r in basis.double():
            expected = without(expected, r)
        torch.testing.assert_close(found, expected, rtol=0, atol=10 * TOLERANCE[dtype])
        assert all(abs(dot(found, r)) < 10 * TOLERANCE[dtype] for r in basis.double())


def test_reject_leaves_no_digits_of_a_large_component() -> None:
    """A component a million times the rest goes as thoroughly as a small one."""
    basis = basis_of(0, 1, 50)
    left = bases.reject(gaussian(1, 50) + 1e6 * basis[0], basis)
    assert abs(dot(left, basis[0])) < 1e-13


@SETTINGS
@given(seed=SEEDS, d=st.integers(1, 10), n=st.integers(1, 7), data=st.data())
def test_orthonormal_spans_what_the_rows_span(seed: int, d: int, n: int, data: st.DataObject) -> None:
    """Rank as built, rows orthonormal, every given row a combination of them, in any scale."""
    rank = data.draw(st.integers(1, min(d, n)))
    scale = 10.0 ** data.draw(st.integers(-4, 4))
    rows = scale * gaussian(seed, n, rank) @ basis_of(seed + 1, rank, d)
    basis = bases.orthonormal(rows)
    assert basis.shape == (rank, d)
    torch.testing.assert_close(basis @ basis.T, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close((rows @ basis.T) @ basis, rows, rtol=0, atol=1e-5 * scale)


@SETTINGS
@given(seed=SEEDS, d=st.integers(3, 10), n=st.integers(1, 3), dtype=DTYPES)
def test_orthonormal_goes_in_order(seed: int, d: int, n: int, dtype: torch.dtype) -> None:
    """Row j of the basis is row j of the input without what the earlier rows span: a first direction stays as it was."""
    rows = gaussian(seed, n, d).to(dtype)
    basis = bases.orthonormal(rows)
    assert basis.dtype == dtype
    for j, row in enumerate(rows.double()):
        earlier = rows[:j].double()
        expected = row - earlier.T @ torch.linalg.lstsq(earlier.T, row[:, None]).solution[:, 0] if j else row
        torch.testing.assert_close(basis[j].double(), expected / length(expected), rtol=0, atol=1e-3 if dtype == torch.float32 else 1e-8)


def test_orthonormal_drops_zero_repeated_and_opposite_rows() -> None:
    """Only what is new counts, so no basis row is made of rounding errors."""
    a, b = gaussian(3, 2, 12)
    basis = bases.orthonormal(torch.stack([torch.zeros_like(a), a, -2 * a, a + 1e-9 * b, b, a - b]))
    assert basis.shape == (2, 12)
    torch.testing.assert_close(basis[0], a / length(a))
    assert bases.orthonormal(torch.zeros(3, 12, dtype=torch.float64)).shape == (0, 12)
