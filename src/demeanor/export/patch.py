"""Changes of stored tensors, from one open file into another: a block of rows at a time, in float32, rounded so that the edit is kept.

A weight whose rows are outputs is read twice: what its rows say together along the edit is known only when all were read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algebra.rounding import Carriers, carried, carriers
from ..io.checkpoint import DTYPES, Stored
from ..io.kernel_copy import read_at, write_at
from .changes import Change

BLOCK_BYTES = 2 << 20  # of a tensor held as float32 at a time: what stays in a processor's cache
EXACT = (torch.float32, torch.float64)  # rounding to these puts back nothing to speak of


class NotFinite(ValueError):
    """A value that is infinite or no number: of the tensor as it was, or as it became."""

    def __init__(self, in_source: bool) -> None:
        super().__init__()
        self.in_source = in_source


@dataclass(frozen=True)
class PutBack:
    """Squares along the kept directions: what rounding put back, and what the change was."""

    rounding: float = 0.0
    change: float = 0.0

    def __add__(self, other: PutBack) -> PutBack:
        return PutBack(self.rounding + other.rounding, self.change + other.change)

    @property
    def share(self) -> float | None:
        """What is left of what was to go, 0 to 1; None where nothing was to."""
        return math.sqrt(self.rounding / self.change) if self.change > 0 else None


@dataclass(frozen=True)
class Span:
    """Rows [start, end) of one matrix [rows, columns] in a pair of files, `place` its first byte in both."""

    source: int
    target: int
    place: int
    columns: int
    dtype: torch.dtype

    def read(self, start: int, end: int) -> Tensor:
        rows = torch.empty(end - start, self.columns, dtype=self.dtype)
        read_at(self.source, _bytes(rows), self._at(start))
        return rows

    def write(self, start: int, rows: Tensor) -> None:
        write_at(self.target, _bytes(rows), self._at(start))

    def _at(self, row: int) -> int:
        return self.place + row * self.columns * self.dtype.itemsize


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(torch.uint8).numpy()).cast("B")


@dataclass(frozen=True)
class Matrices:
    """A stored tensor as `count` matrices [rows, columns], one after the other; the outputs are their rows (axis 0) or columns (1)."""

    count: int
    rows: int
    columns: int
    axis: int


def matrices(shape: tuple[int, ...], axis: int) -> Matrices:
    """A tensor of any shape whose `axis` is the outputs."""
    axis %= len(shape)
    if axis == len(shape) - 1:
        return Matrices(1, math.prod(shape[:-1]), shape[-1], 1)
    return Matrices(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]), 0)


def tasks(stored: Stored, change: Change) -> list[tuple[int, int, int]]:
    """What of a tensor is changed by itself, as (matrix, first row, last row): single matrices, or some of the rows where each is."""
    form = matrices(stored.shape, change.axis)
    if not form.rows or not form.columns:
        return []
    if form.axis == 0:
        return [(number, 0, form.rows) for number in range(form.count)]
    step = max(1, 16 * BLOCK_BYTES // (4 * form.columns))
    return [(0, start, min(start + step, form.rows)) for start in range(0, form.rows, step)]


def patched(source: int, target: int, stored: Stored, change: Change, task: tuple[int, int, int]) -> PutBack:
    """Change one task of a tensor of the open file `source`, and write it to the same place of `target`.

    Raises NotFinite where something of it is no number.
    """
    number, start, end = task
    form, dtype = matrices(stored.shape, change.axis), DTYPES[stored.dtype]
    place = stored.start + number * form.rows * form.columns * dtype.itemsize
    span = Span(source, target, place, form.columns, dtype)
    change = change.to(torch.float64 if dtype == torch.float64 else torch.float32)
    return _by_rows(span, start, end, change) if form.axis == 1 else _by_columns(span, form.rows, change)


def _by_rows(span: Span, start: int, end: int, change: Change) -> PutBack:
    """Rows that are changed each by itself: their columns are the outputs."""
    left, edit, basis = change.low_rank, change.edit, change.basis
    by = _carriers(span.dtype, basis)
    through, total = edit.M @ basis.mT, PutBack()
    for first, last in _blocks(start, end, span.columns):
        exact = _read(span, first, last, basis.dtype)
        moved = exact.new_zeros(len(exact), len(basis))
        if left is not None:  # a weight [in, out]
            exact.addmm_(left.right.mT[first:last], left.left.mT)
            moved += left.right.mT[first:last] @ (left.left.mT @ basis.mT)
        along = exact @ edit.V.mT
        exact.addmm_(along, edit.M)
        moved += along @ through
        stored = _rounded(exact, span.dtype)
        if by is not None:
            error = ((stored.to(exact.dtype) - exact) @ basis.mT).mT
            values, error = carried(exact[:, by.rows].mT.contiguous(), error.contiguous(), by, _rounding(span.dtype))
            stored[:, by.rows] = values.mT.to(span.dtype)
            total += PutBack(float(error.square().sum()), float(moved.square().sum()))
        span.write(first, stored)
    return total


def _by_columns(span: Span, rows: int, change: Change) -> PutBack:
    """A whole matrix whose rows are the outputs."""
    edit, basis = change.edit, change.basis
    low_rank = change.low_rank
    along = basis.new_zeros(len(edit.V), span.columns)
    for first, last in _blocks(0, rows, span.columns):
        along.addmm_(edit.V[:, first:last], _read(span, first, last, basis.dtype))
    left, right = edit.M.mT, along
    if low_rank is not None:
        along.addmm_(edit.V @ low_rank.left, low_rank.right)
        left, right = torch.cat([low_rank.left, left], dim=1), torch.cat([low_rank.right, along])
    by = _carriers(span.dtype, basis)
    error = basis.new_zeros(len(basis), span.columns)
    kept = basis.new_empty(0 if by is None else len(by.rows), span.columns)
    for first, last in _blocks(0, rows, span.columns):
        exact = _read(span, first, last, basis.dtype).addmm_(left[first:last], right)
        stored = _rounded(exact, span.dtype)
        span.write(first, stored)
        if by is not None:
            here = (by.rows >= first) & (by.rows < last)
            kept[here] = exact[by.rows[here] - first]
            error.addmm_(basis[:, first:last], stored.to(exact.dtype).sub_(exact))
    if by is None:
        return PutBack()
    values, error = carried(kept, error, by, _rounding(span.dtype))
    for row, stored in zip(by.rows.tolist(), _rounded(values, span.dtype)):
        span.write(row, stored)
    return PutBack(float(error.square().sum()), float(((basis @ left) @ right).square().sum()))


def _blocks(start: int, end: int, columns: int) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_BYTES // (4 * columns))
    yield from ((first, min(first + step, end)) for first in range(start, end, step))


def _carriers(dtype: torch.dtype, basis: Tensor) -> Carriers | None:
    return carriers(basis) if len(basis) and dtype not in EXACT else None


def _rounding(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda values: values.to(dtype).to(values.dtype)


def _read(span: Span, first: int, last: int, dtype: torch.dtype) -> Tensor:
    values = span.read(first, last).to(dtype)
    if not _finite(values):
        raise NotFinite(in_source=True)
    return values


def _rounded(exact: Tensor, dtype: torch.dtype) -> Tensor:
    stored = exact.to(dtype)
    if not _finite(stored):
        raise NotFinite(in_source=False)
    return stored


def _finite(values: Tensor) -> bool:
    """Whether all are numbers. A sum says so of almost every tensor at once; it may overflow where they are all finite."""
    return bool(values.sum(dtype=torch.float32).isfinite()) or bool(values.isfinite().all())
