"""Rounding that keeps an edit: what was made exactly stays so along a few directions once it is stored in few bits.

A matrix T [d, n] is stored as Q, whose values lie on a grid. To the nearest value, rounding puts back part of what an edit took
away along the orthonormal rows of a basis K [k, d]. Here the error e = K (Q - T) is brought to zero by taking some values up or
down instead of to the nearest. docs/algorithms.md, section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CARRIERS = 0.3  # rows that carry the error, in units of the root of d
FEWEST_CARRIERS = 16
TAIL = 8  # of them per direction, with less and less of it: they make the last, small steps
STEEPEST = 3.0  # from one of these rows to the next, so many times less of the basis at most
DAMPING = 0.25
STEPS, FLIPS = 14, 16  # of the search for multipliers, and single changes after it


@dataclass(frozen=True)
class Carriers:
    """The rows of a matrix that carry the error of all, in the order in which they are rounded.

    rows [m]; basis [k, m], the columns of K there; gains [m, k], what of the error each of them takes.
    """

    rows: Tensor
    basis: Tensor
    gains: Tensor


def carriers(basis: Tensor) -> Carriers:
    """The rows with most of the basis [k, d] in them first, then some with less and less."""
    k, d = basis.shape
    sorted_sizes, order = basis.norm(dim=0).sort(descending=True, stable=True)
    sizes = sorted_sizes.tolist()
    count = min(d, max(FEWEST_CARRIERS, round(CARRIERS * d**0.5)) * k)
    places = {*range(count), *(round(d * share) - 1 for share in torch.linspace(0.3, 0.98, TAIL * k).tolist())}
    chosen: list[int] = []
    for place in sorted(place for place in places if 0 <= place < d):
        if not chosen or STEEPEST * sizes[place] >= sizes[chosen[-1]] > 0:  # a row with far less would have to move far
            chosen.append(place)
    rows = order[chosen]
    along = basis[:, rows].double()
    damping = DAMPING * along[:, -1].square().sum() * torch.eye(k, dtype=torch.float64)  # no row moves far for a direction it hardly has
    squares = along.mT[:, :, None] * along.mT[:, None, :]
    left = damping + squares.flip(0).cumsum(0).flip(0)  # what the rows from here on can still take
    gains = torch.linalg.solve(left, along.mT[:, :, None])[:, :, 0]
    return Carriers(rows, basis[:, rows].contiguous(), gains.to(basis))


def carried(target: Tensor, error: Tensor, by: Carriers, rounded: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The carrying rows so rounded that the error of all rows goes, and what is left of it [k, n].

    target [m, n]: the exact values of the carrying rows; error [k, n]: of all rows, these rounded to the nearest.
    rounded: the nearest values of the grid, as float32. For grids that are fine beside the edit (bf16, fp16).
    """
    values = rounded(target)
    error = error - by.basis @ (values - target)  # of all the other rows
    of_all = error.mT
    for exact, value, gain, along in zip(target, values, by.gains, by.basis.mT):
        value.copy_(rounded(torch.addmv(exact, of_all, gain, alpha=-1)))
        error.addr_(along, value - exact)
    return values, error


@dataclass(frozen=True)
class Grid:
    """Values that can be stored: `scale` times one of the sorted `levels` [l]. scale broadcasts to the matrix; codes are places in `levels`."""

    levels: Tensor
    scale: Tensor
    offset: Tensor | None = None

    def nearest(self, values: Tensor) -> Tensor:
        values = values if self.offset is None else values - self.offset
        scaled = values / torch.where(self.scale == 0, 1.0, self.scale)
        return torch.bucketize(scaled, (self.levels[1:] + self.levels[:-1]) / 2, out_int32=True)

    def values(self, codes: Tensor) -> Tensor:
        values = self.levels[codes.clamp(0, len(self.levels) - 1)] * self.scale
        return values if self.offset is None else values + self.offset


def settled(target: Tensor, basis: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Codes [d, n] of values near target [d, n] without an error along basis [k, d], and what is left of the error [k, n].

    Least squares under k conditions for every column: with multipliers m, the best values are those nearest to T - K^T m. They are
    found by gradient steps of Barzilai and Borwein's length; what is left then goes by changes of single values.
    """
    codes = grid.nearest(target)
    error = basis @ (grid.values(codes) - target)
    best, least = codes, error
    multipliers = torch.zeros_like(error)
    length = error.new_ones(error.shape[1])
    for _ in range(STEPS):
        move = length * error
        multipliers = multipliers + move
        codes = grid.nearest(target - basis.mT @ multipliers)
        after = basis @ (grid.values(codes) - target)
        better = after.square().sum(0) < least.square().sum(0)
        best, least = torch.where(better, codes, best), torch.where(better, after, least)
        moved, gained = move.square().sum(0), (move * (error - after)).sum(0)
        length = torch.where(gained > 1e-3 * moved, moved / gained.clamp_min(1e-30), 2 * length)
        error = after
    return _flipped(best, least, basis, grid)


def _flipped(codes: Tensor, error: Tensor, basis: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Single values go to their neighbours, that which leaves least first, while any of them makes the error smaller."""
    columns = torch.arange(codes.shape[1])
    size = basis.square().sum(0)[:, None]
    codes = codes.clone()
    for _ in range(FLIPS):
        now, towards = grid.values(codes), 2 * basis.mT @ error
        steps: Sequence[Tensor] = [grid.values(codes + way) - now for way in (1, -1)]
        changes = [(step * (towards + step * size)).min(0) for step in steps]
        up = changes[0].values <= changes[1].values
        row = torch.where(up, changes[0].indices, changes[1].indices)
        helps = torch.minimum(changes[0].values, changes[1].values) < 0
        if not bool(helps.any()):
            break
        step = torch.where(up, steps[0][row, columns], steps[1][row, columns]) * helps
        codes[row, columns] += (torch.where(up, 1, -1) * helps).to(codes.dtype)
        error = error + basis[:, row] * step
    return codes, error
