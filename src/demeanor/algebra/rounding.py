"""Rounding that keeps an edit: what was made exactly stays so along a few directions once it is stored in few bits.

A matrix T [d, n] is stored as Q, whose values lie on a grid. To the nearest value, rounding puts back part of what an edit took
away along the orthonormal rows of a basis K [k, d]. Here the error e = K (Q - T) is brought to zero by taking some values up or
down instead of to the nearest: on fine grids here, on coarse ones in `settling`. docs/algorithms.md, section 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Numbers = np.ndarray[Any, np.dtype[Any]]
CARRIERS = 0.3  # rows that carry the error, in units of the root of d
FEWEST_CARRIERS = 16
TAIL = 8  # of them per direction, with less and less of it: they make the last, small steps
STEEPEST = 3.0  # from one of these rows to the next, so many times less of the basis at most
DAMPING = 0.25


@dataclass(frozen=True)
class Carriers:
    """The rows of a matrix that carry the error of all, in the order in which they are rounded.

    rows [m]; basis [k, m], the columns of K there; gains [m, k], what of the error each of them takes.
    """

    rows: Numbers
    basis: Numbers
    gains: Numbers


def carriers(basis: Numbers) -> Carriers:
    """The rows with most of the basis [k, d] in them first, then some with less and less."""
    k, d = basis.shape
    lengths = np.linalg.vector_norm(basis, axis=0)
    order = np.argsort(-lengths, kind="stable")
    sizes = lengths[order].tolist()
    count = min(d, max(FEWEST_CARRIERS, round(CARRIERS * d**0.5)) * k)
    places = {*range(count), *(round(d * share) - 1 for share in np.linspace(0.3, 0.98, TAIL * k).tolist())}
    chosen: list[int] = []
    for place in sorted(place for place in places if 0 <= place < d):
        if not chosen or STEEPEST * sizes[place] >= sizes[chosen[-1]] > 0:  # a row with far less would have to move far
            chosen.append(place)
    rows = order[chosen]
    along = basis[:, rows].astype(np.float64)
    damping = DAMPING * np.square(along[:, -1]).sum() * np.eye(k)  # no row moves far for a direction it hardly has
    squares = along.mT[:, :, None] * along.mT[:, None, :]
    left = damping + np.flip(np.flip(squares, 0).cumsum(0), 0)  # what the rows from here on can still take
    gains = np.linalg.solve(left, along.mT[:, :, None])[:, :, 0]
    return Carriers(rows, basis[:, rows], gains.astype(basis.dtype))


def carried(target: Numbers, error: Numbers, by: Carriers, rounded: Callable[[Numbers], Numbers]) -> tuple[Numbers, Numbers]:
    """The carrying rows so rounded that the error of all rows goes, and what is left of it [k, n].

    target [m, n]: the exact values of the carrying rows; error [k, n]: of all rows, these rounded to the nearest.
    rounded: the nearest values of the grid, as float32. For grids that are fine beside the edit (bf16, fp16).
    """
    values = rounded(target)
    error = error - by.basis @ (values - target)  # of all the other rows
    for exact, value, gain, along in zip(target, values, by.gains, by.basis.mT):
        value[:] = rounded(exact - gain @ error)
        error += along[:, None] * (value - exact)
    return values, error


@dataclass(frozen=True)
class Grid:
    """Values that can be stored: `scale` times one of the sorted `levels` [l]. scale, of either sign, broadcasts to the matrix; codes are places in `levels`."""

    levels: Tensor
    scale: Tensor

    def nearest(self, values: Tensor) -> Tensor:
        import torch

        scaled = values / torch.where(self.scale == 0, 1.0, self.scale)
        return torch.bucketize(scaled, (self.levels[1:] + self.levels[:-1]) / 2, out_int32=True)

    def beyond(self, values: Tensor) -> Tensor:
        """Whether each value lies so far beyond the ends of the grid, more than half a step, that it is cut off; where a scale is 0, whether it is any but 0."""
        import torch

        scaled = values / torch.where(self.scale == 0, 1.0, self.scale)
        low, high = (3 * self.levels[:2] - self.levels[:2].flip(0))[0] / 2, (3 * self.levels[-2:] - self.levels[-2:].flip(0))[1] / 2
        return torch.where(self.scale == 0, values != 0, (scaled < low) | (scaled > high))

    def values(self, codes: Tensor) -> Tensor:
        return self.levels[codes.clamp(0, len(self.levels) - 1)] * self.scale

    @property
    def upward(self) -> Tensor:
        """What is added to a code so that its value rises to the next one: 1, or -1 where a scale is negative."""
        import torch

        return torch.where(self.scale < 0, -1, 1).int()

    def at(self, columns: slice | Tensor) -> Grid:
        """The same for some columns of the matrix."""
        return self if self.scale.shape[-1] == 1 else Grid(self.levels, self.scale[..., columns])

    def rows(self, rows: Tensor) -> Grid:
        """The same for some rows of the matrix."""
        return self if self.scale.shape[0] == 1 else Grid(self.levels, self.scale[rows])
