"""Values of a coarse grid that keep an edit: near to what was made exactly, and without an error along a few directions.

Every column of a matrix T [d, n] is a least-squares problem with k conditions: its values Q lie on a grid, and K (Q - T) is to be zero
for the orthonormal rows of K [k, d]. docs/algorithms.md, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .rounding import Grid

AT_ONCE = 1 << 17  # weights that are worked on together: what stays in a processor's cache
CENTRES, STEPS = 8, 8  # of the search for multipliers: places about which the grid is looked at, at most, and steps about each
HEAVY = 32  # of so many rows one may go far
LONGER, SHORTER, SHORTEST = 4.0, 0.6, 0.1  # a step beside the last one, at most and at least
FLIPS = 16  # changes of single values
ROUNDS = (16, 16, 24, 24)  # of the search for changes of some values at once: rows in each of its halves
MANY = 4  # directions; for more of them the larger halves take long and find little
COMPARED = 1 << 18  # pairs of changes at once
THRIFT = 0.25  # what a change adds to the distance, beside what is enough: among changes that leave little, the near one


def settled(target: Tensor, basis: Tensor, grid: Grid, enough: float = 0.0) -> tuple[Tensor, Tensor]:
    """Codes [d, n] of values near target [d, n] without an error along basis [k, d], and what is left of the error [k, n].

    enough: the length of a column's error that needs no more work. No column is left with more than rounding to the nearest leaves.
    """
    step = max(1, AT_ONCE // max(1, len(target)))
    parts = [
        _settled(target[:, first : first + step].contiguous(), basis, grid.at(slice(first, first + step)), enough)
        for first in range(0, target.shape[1], step)
    ]  # fmt: skip
    if not parts:
        return grid.nearest(target), basis @ target
    return torch.cat([codes for codes, _ in parts], dim=1), torch.cat([error for _, error in parts], dim=1)


def _settled(target: Tensor, basis: Tensor, grid: Grid, enough: float) -> tuple[Tensor, Tensor]:
    nearest = grid.nearest(target)
    around = _Around(target, basis, grid, _balanced(target, basis, grid, nearest))
    before, steps = basis @ (grid.values(nearest) - target), (around.up + around.down).square().mean(1).sqrt() / 2
    price = THRIFT * enough**2 / max(float(steps.square().mean()), 1e-30)
    around.flip(grid, enough, price)
    codes, error = around.codes, around.error
    _combined(codes, error, target, basis, grid, steps, enough)
    worse = error.square().sum(0) > before.square().sum(0)
    return torch.where(worse, nearest, codes), torch.where(worse, before, error)


class _Around:
    """Codes, and those of them or of their neighbours that are nearest to T - K^T m, for multipliers m [k, n].

    The rows with most of the basis in them may go further than to a neighbour, as they have to where they say a good part of a direction.
    Buffers are used again and again: fresh memory costs more than the arithmetic.
    """

    def __init__(self, target: Tensor, basis: Tensor, grid: Grid, codes: Tensor) -> None:
        now = grid.values(codes)
        self.heavy = basis.square().sum(0).topk(-(-len(target) // HEAVY)).indices
        self.heavy_grid, self.heavy_target, self.heavy_now, self.heavy_basis = grid.rows(self.heavy), target[self.heavy], now[self.heavy], basis[:, self.heavy].mT
        self.basis, self.codes, self.last, self.upward = basis, codes, len(grid.levels) - 1, grid.upward
        self.up, self.down = grid.values(codes + self.upward) - now, now - grid.values(codes - self.upward)
        self.off = now - target
        self.error = basis @ self.off
        self._floor, self._ceiling = -self.up / 2, self.down / 2
        self._shifted, self._moved, self._lower = (torch.empty_like(now) for _ in range(3))

    def at(self, m: Tensor) -> tuple[Tensor, Tensor]:
        """The error [k, n] of the nearest values, and Lagrange's function there [n]: the squared distance of values without an error is no less."""
        shifted, moved, lower = self._shifted, self._moved, self._lower
        torch.addmm(self.off, self.basis.mT, m, out=shifted)
        torch.lt(shifted, self._floor, out=moved).mul_(self.up)
        torch.gt(shifted, self._ceiling, out=lower).mul_(self.down)
        moved.sub_(lower)
        moved[self.heavy] = self.heavy_grid.values(self._heavy_codes(m)) - self.heavy_now
        error = torch.addmm(self.error, self.basis, moved)
        return error, shifted.add_(moved).square_().sum(0) - m.square().sum(0)

    def flip(self, grid: Grid, enough: float, price: float) -> None:
        """Single values go to their neighbours, that which leaves least first, in columns whose error is above `enough`, while that makes it smaller."""
        columns, size = torch.arange(self.codes.shape[1]), self.basis.square().sum(0)[:, None] + price
        scale, ways = grid.scale.expand_as(self.codes), self.upward.expand_as(self.codes)
        for _ in range(FLIPS):
            towards = torch.addmm(self.off, self.basis.mT, self.error, beta=price).mul_(2)
            up = torch.mul(self.up, size, out=self._shifted).add_(towards).mul_(self.up).min(0)
            down = torch.mul(self.down, size, out=self._shifted).sub_(towards).mul_(self.down).min(0)
            upward = up.values <= down.values
            row = torch.where(upward, up.indices, down.indices)
            step = torch.where(upward, self.up[row, columns], -self.down[row, columns])
            after = self.error + self.basis[:, row] * step
            length = self.error.square().sum(0)
            helps = (length > enough**2) & (after.square().sum(0) < length)
            if not bool(helps.any()):
                return
            row, where, step = row[helps], columns[helps], step[helps]
            self.error[:, where] = after[:, where]
            self.off[row, where] += step
            way = ways[row, where]
            code = self.codes[row, where] + torch.where(step > 0, way, -way)
            self.codes[row, where] = code
            now = grid.levels[code] * scale[row, where]
            self.up[row, where] = grid.levels[(code + way).clamp(0, self.last)] * scale[row, where] - now
            self.down[row, where] = now - grid.levels[(code - way).clamp(0, self.last)] * scale[row, where]

    def codes_at(self, m: Tensor) -> Tensor:
        shifted = torch.addmm(self.off, self.basis.mT, m)
        codes = (self.codes + self.upward * ((shifted < self._floor).int() - (shifted > self._ceiling).int())).clamp_(0, self.last)
        codes[self.heavy] = self._heavy_codes(m)
        return codes

    def _heavy_codes(self, m: Tensor) -> Tensor:
        return self.heavy_grid.nearest(torch.addmm(self.heavy_target, self.heavy_basis, m, alpha=-1))

    def climbed(self, m: Tensor, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Multipliers that make Lagrange's function greater than m does, the length of the last step, and the error there.

        It is concave, and the error is its slope: steps of Barzilai and Borwein's length, and a shorter one wherever it became less.
        """
        error, most = self.at(m)
        for _ in range(STEPS):
            tried = m + length * error
            after, value = self.at(tried)
            slope = error.square().sum(0)
            bent = slope - (error * after).sum(0)  # how much of the slope went on the way
            better = value >= most
            ratio = slope / bent.clamp_min(1e-30)
            length = length * torch.where(better, torch.where(LONGER * bent > slope, ratio, LONGER).clamp(SHORTEST, LONGER), ratio.clamp(SHORTEST, SHORTER))
            m, most, error = torch.where(better, tried, m), torch.where(better, value, most), torch.where(better, after, error)
        return m, length, error


def _balanced(target: Tensor, basis: Tensor, grid: Grid, nearest: Tensor) -> Tensor:
    """Codes of the values nearest to T - K^T m, for the multipliers m that make Lagrange's function greatest."""
    m, length = target.new_zeros(len(basis), target.shape[1]), target.new_ones(target.shape[1])
    codes, columns = nearest.clone(), torch.arange(target.shape[1])
    for centre in range(CENTRES):
        around = _Around(target, basis, grid, codes[:, columns])
        m, length, error = around.climbed(m, length)
        codes[:, columns] = reached = around.codes_at(m)
        far = torch.ones(len(columns), dtype=torch.bool)
        if centre:  # what a few single values can still change needs no more of this
            little = (around.up + around.down).square().mean() * len(basis) / len(target)  # two steps of an average row
            far = (error.square().sum(0) > little) & (grid.nearest(target - basis.mT @ m) != reached).any(0)
        if not bool(far.any()):
            break
        if not bool(far.all()):
            columns, target, grid, m, length = columns[far], target[:, far], grid.at(far), m[:, far], length[far]
    return codes


@dataclass(frozen=True)
class _Moves:
    """Changes of one or two values among some rows of every column, or of none: their number is p.

    rows: of the matrix. codes [p, rows]: what is added to the codes. along [n, p, k]: to the error. cost [n, p]: to the squared distance.
    """

    rows: Tensor
    codes: Tensor
    along: Tensor
    cost: Tensor


def _combined(codes: Tensor, error: Tensor, target: Tensor, basis: Tensor, grid: Grid, steps: Tensor, enough: float) -> None:
    """Up to four values of every column change so that least of the error is left; `codes` and `error` are changed in place.

    Two changes in one half of some rows are compared with two in the other half, all with all. The rows are those with least of the basis in them,
    whose changes are the finest, that still reach as far as the error.
    """
    reach, order = (basis.norm(dim=0) * steps).sort()
    order, reach = order[reach > 0], reach[reach > 0]
    unused = torch.ones(len(order), dtype=torch.bool)
    for half in ROUNDS if len(basis) <= MANY else ROUNDS[:2]:
        columns = (error.square().sum(0) > enough**2).nonzero()[:, 0]
        if not len(columns) or not len(order):
            return
        rows = min(2 * half, len(order))
        if int(unused.sum()) < rows:
            unused[:] = True
        free = unused.nonzero()[:, 0]
        far = error[:, columns].square().sum(0).mean()
        sums = torch.cat([reach.new_zeros(1), reach[free].square().cumsum(0)])
        wide = (4 * (sums[rows:] - sums[:-rows]) / rows >= far).nonzero()
        first = int(wide[0]) if len(wide) else len(free) - rows
        chosen = free[first : first + rows]
        unused[chosen] = False
        price = THRIFT * enough**2 / float(steps[order[chosen]].square().mean())
        _best([_moves(order[chosen[side::2]], columns, codes, target, basis, grid) for side in (0, 1)], columns, codes, error, price)
        codes.clamp_(0, len(grid.levels) - 1)  # a change at an end of the grid is none


def _moves(rows: Tensor, columns: Tensor, codes: Tensor, target: Tensor, basis: Tensor, grid: Grid) -> _Moves:
    cells = rows[:, None], columns
    scale = grid.scale.expand_as(codes)[cells]
    at, last = codes[cells], len(grid.levels) - 1
    now = grid.levels[at] * scale
    step = torch.stack([grid.levels[(at + way).clamp(0, last)] * scale - now for way in (1, -1)], dim=1).flatten(0, 1)  # [2 rows, n]
    along = step.mT[:, :, None] * basis[:, rows].mT.repeat_interleave(2, 0)
    cost = (step * (step + 2 * (now - target[cells]).repeat_interleave(2, 0))).mT
    single = torch.eye(len(rows), dtype=codes.dtype).repeat_interleave(2, 0) * torch.tensor([1, -1], dtype=codes.dtype).repeat(len(rows))[:, None]
    one, other = torch.triu_indices(2 * len(rows), 2 * len(rows), 1)
    apart = one // 2 != other // 2  # not up and down in one row
    one, other = one[apart], other[apart]

    def all_of(values: Tensor, dim: int) -> Tensor:
        none = torch.zeros_like(values.narrow(dim, 0, 1)) if len(rows) else values.new_zeros(*values.shape[:dim], 1, *values.shape[dim + 1 :])
        return torch.cat([none, values, values.index_select(dim, one) + values.index_select(dim, other)], dim)

    return _Moves(rows, all_of(single, 0), all_of(along, 1), all_of(cost, 1))


def _best(halves: list[_Moves], columns: Tensor, codes: Tensor, error: Tensor, price: float) -> None:
    """One change of each half for every one of `columns`, so that the squared error and `price` times the cost are least."""
    first, second = halves
    start = error[:, columns].mT[:, None] + first.along
    left = torch.cat([start, (start.square().sum(2) + price * first.cost)[:, :, None], torch.ones_like(start[:, :, :1])], dim=2)
    right = torch.cat([2 * second.along, torch.ones_like(second.along[:, :, :1]), (second.along.square().sum(2) + price * second.cost)[:, :, None]], dim=2)
    best = [torch.empty(len(columns), dtype=torch.long) for _ in halves]
    together = max(1, COMPARED // (left.shape[1] * right.shape[1]))
    for place in range(0, len(columns), together):
        part = slice(place, place + together)
        best[0][part] = torch.bmm(left[part], right[part].mT).amin(2).argmin(1)
        row = left[part].take_along_dim(best[0][part, None, None], 1)
        best[1][part] = torch.bmm(row, right[part].mT)[:, 0].argmin(1)
    every = torch.arange(len(columns))
    after = (start[every, best[0]] + second.along[every, best[1]]).mT
    helps = after.square().sum(0) < error[:, columns].square().sum(0)
    for moves, taken in zip(halves, best):
        codes[moves.rows[:, None], columns] += (moves.codes[taken] * helps[:, None]).mT
    error[:, columns] = torch.where(helps, after, error[:, columns])
