"""Coarse values that keep an edit, against rounding to the nearest, exhaustive search, and the least distance that any such values can have."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from demeanor.algebra.rounding import Grid
from demeanor.algebra.settling import settled
from demeanor.structure.stored_values import E2M1, E4M3

SETTINGS = settings(derandomize=True, deadline=None, max_examples=25)
SEEDS = st.integers(0, 2**32 - 1)
FP4, INT4, INT8 = E2M1.unique(), torch.arange(-8.0, 8), torch.arange(-128.0, 128)
FP8 = E4M3[E4M3.isfinite()].unique()
FORMS = {"MXFP4": (FP4, 32), "NVFP4": (FP4, 16), "int4": (INT4, 32), "int8": (INT8, 32), "FP8": (FP8, 128)}
ENOUGH = 3e-4  # as a bake asks for


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def basis_of(seed: int, k: int, d: int) -> Tensor:
    return torch.linalg.qr(gaussian(seed, d, k).double()).Q.T.float().contiguous()


def grid_of(form: str, weight: Tensor, across: bool) -> Grid:
    """The grid that a quantiser would choose, with blocks of a scale along the columns of a matrix or across them."""
    levels, block = FORMS[form]
    turned = weight.mT if across else weight
    most = torch.cat([part.abs().amax(1, keepdim=True).expand_as(part) for part in turned.split(block, 1)], 1)
    scale = most / levels[-1]
    scale = scale.log2().ceil().exp2() if form == "MXFP4" else scale
    return Grid(levels, (scale.mT if across else scale).contiguous())


class Edited:
    """Stored values [d, n] and what they are without the basis: exact, to the nearest, and settled."""

    def __init__(self, weight: Tensor, basis: Tensor, grid: Grid, enough: float = ENOUGH) -> None:
        self.basis, self.grid = basis, grid
        self.weight = grid.values(grid.nearest(weight))
        self.exact = self.weight - basis.T @ (basis @ self.weight)
        self.nearest = grid.values(grid.nearest(self.exact))
        self.removed = float((basis @ self.weight).norm())
        self.codes, self.error = settled(self.exact, basis, grid, enough * self.removed / max(1, weight.shape[1]) ** 0.5)
        self.kept = grid.values(self.codes)

    @property
    def left(self) -> float:
        return float((self.basis @ self.kept).norm()) / self.removed

    @property
    def distance(self) -> float:
        return float((self.kept - self.exact).norm() / (self.nearest - self.exact).norm())

    def least_distance(self) -> float:
        """What no values without an error can go below, by the slow and obvious way: Lagrange's function, many short steps up its slope."""
        m, best = torch.zeros(len(self.basis), self.exact.shape[1]), torch.full((self.exact.shape[1],), -torch.inf)
        step = 8 * self.grid.scale.mean() * self.grid.levels.diff().median()
        for number in range(400):
            off = self.grid.values(self.grid.nearest(self.exact - self.basis.T @ m)) - self.exact
            error = self.basis @ off
            best = torch.maximum(best, off.square().sum(0) + 2 * (m * error).sum(0))
            m = m + step * 0.985**number * error / error.norm(dim=0).clamp_min(1e-12)
        return float(best.clamp_min(0).sum().sqrt() / (self.nearest - self.exact).norm())


@SETTINGS
@given(
    seed=SEEDS, d=st.integers(512, 1100), k=st.sampled_from([1, 2, 4]), form=st.sampled_from(sorted(FORMS)), across=st.booleans(), signed=st.booleans()
)  # fmt: skip
def test_next_to_nothing_is_left_in_any_form(seed: int, d: int, k: int, form: str, across: bool, signed: bool) -> None:
    """Scales may be negative in a file: signed ones of whole numbers are."""
    weight = gaussian(seed + 1, d, 24)
    grid = grid_of(form, weight, across)
    signs = torch.where(gaussian(seed + 2, d, 1) > 0, 1.0, -1.0) if signed else torch.ones(1, 1)
    edited = Edited(weight, basis_of(seed, k, d), Grid(grid.levels, grid.scale * signs))
    assert torch.allclose(edited.basis @ (edited.kept - edited.exact), edited.error, atol=1e-4)
    assert edited.left <= 5e-4
    assert edited.distance <= 1.8


@SETTINGS
@given(seed=SEEDS, d=st.integers(1, 300), n=st.integers(0, 9), k=st.sampled_from([1, 2, 4, 8]), form=st.sampled_from(sorted(FORMS)))
def test_no_column_keeps_more_than_the_nearest_values_do(seed: int, d: int, n: int, k: int, form: str) -> None:
    weight = gaussian(seed + 1, d, n)
    basis = basis_of(seed, min(k, d), d)
    edited = Edited(weight, basis, grid_of(form, weight, False) if n else Grid(FORMS[form][0], torch.ones(1, 1)))
    assert (edited.codes >= 0).all()
    assert (edited.codes < len(edited.grid.levels)).all()
    by_nearest = (basis @ (edited.nearest - edited.exact)).norm(dim=0)
    assert ((basis @ (edited.kept - edited.exact)).norm(dim=0) <= by_nearest + 1e-5).all()


@pytest.mark.parametrize(("form", "above"), [("int8", 1.01), ("FP8", 1.02), ("MXFP4", 1.06)])
@pytest.mark.parametrize("seed", range(3))
def test_values_go_hardly_further_than_any_must(form: str, above: float, seed: int) -> None:
    weight = gaussian(seed, 256, 128)
    edited = Edited(weight, basis_of(seed + 9, 1, 256), grid_of(form, weight, False))
    assert edited.distance <= above * edited.least_distance()


@pytest.mark.parametrize("form", ["int8", "int4", "FP8"])
def test_rows_that_say_most_of_a_direction_go_as_far_as_they_must(form: str) -> None:
    """A direction in few rows takes some of their largest values over the end of the grid: the others make up for it, by several steps each."""
    weight, basis = gaussian(0, 512, 128), gaussian(1, 512, 1)
    basis[gaussian(2, 512) < 1.5] = 0
    edited = Edited(weight, (basis / basis.norm()).T.contiguous(), grid_of(form, weight, False))
    assert edited.left <= 5e-4
    assert edited.distance <= 1.8


@pytest.mark.parametrize("seed", range(5))
def test_no_single_change_would_leave_less(seed: int) -> None:
    """Tried one by one, every value taken to the one above and below."""
    basis = basis_of(seed, 1, 12)
    grid = Grid(INT4, torch.ones(12, 1))
    exact = gaussian(seed + 1, 12, 1) * 2
    codes, left = settled(exact, basis, grid)
    for row, way in itertools.product(range(12), (1, -1)):
        other = codes.clone()
        other[row] = (other[row] + way).clamp(0, 15)
        assert (basis @ (grid.values(other) - exact)).abs() >= left.abs() - 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_few_values_come_near_to_the_best_of_all(seed: int) -> None:
    """Every way to take each of six values to one of the three next to it, tried one by one."""
    basis, grid, exact = basis_of(seed, 2, 6), Grid(INT4, torch.ones(6, 1)), gaussian(seed + 1, 6, 1) * 2
    _, left = settled(exact, basis, grid)
    nearest = grid.nearest(exact)
    moves = torch.tensor(list(itertools.product((-1, 0, 1), repeat=6)), dtype=torch.int32).T
    errors = (basis @ (grid.values((nearest + moves).clamp(0, 15)) - exact)).norm(dim=0)
    assert float(left.norm()) <= float(errors.sort().values[20])


def test_a_block_of_nothing_stays_nothing() -> None:
    grid = Grid(FP4, torch.zeros(8, 1))
    codes, left = settled(torch.zeros(8, 3), basis_of(0, 1, 8), grid)
    assert not grid.values(codes).any()
    assert not left.any()
