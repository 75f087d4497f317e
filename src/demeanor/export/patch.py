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
NOTHING = 1e-6  # of the square of a length: what is left there is rounding, and is not scaled up
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


class Span:
    """Rows of one matrix [rows, columns] in a pair of open files, `place` its first byte in both.

    One block of rows is held at a time, in buffers that are used again and again: fresh memory costs more than the arithmetic.
    """

    def __init__(self, source: int, target: int, place: int, columns: int, dtype: torch.dtype, work: torch.dtype) -> None:
        self.source, self.target, self.place, self.columns, self.dtype = source, target, place, columns, dtype
        self.step = max(1, BLOCK_BYTES // (4 * columns))
        self._raw = torch.empty(self.step, columns, dtype=dtype)
        self._values, self._again = (torch.empty(self.step, columns, dtype=work) for _ in range(2))

    def blocks(self, start: int, end: int) -> Iterator[tuple[int, int, Tensor]]:
        """The rows in [start, end) as numbers that may be changed: first row, last row, block."""
        for first in range(start, end, self.step):
            last = min(first + self.step, end)
            raw = self._raw[: last - first]
            read_at(self.source, _bytes(raw), self._at(first))
            yield first, last, self._values[: last - first].copy_(raw)

    def write(self, first: int, values: Tensor) -> Tensor:
        """Store the values of rows from `first` on; returns them as they are stored."""
        stored = self._raw[: len(values)].copy_(values)
        write_at(self.target, _bytes(stored), self._at(first))
        return self._again[: len(values)].copy_(stored)

    def _at(self, row: int) -> int:
        return self.place + row * self.columns * self.dtype.itemsize


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.view(torch.uint8).numpy()).cast("B")


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
    work = torch.float64 if dtype == torch.float64 else torch.float32
    place = stored.start + number * form.rows * form.columns * dtype.itemsize
    span = Span(source, target, place, form.columns, dtype, work)
    change = change.to(work)
    return _by_rows(span, start, end, change) if form.axis == 1 else _by_columns(span, form.rows, change)


def _by_rows(span: Span, start: int, end: int, change: Change) -> PutBack:
    """Rows that are changed each by itself: their columns are the outputs."""
    left, edit, basis = change.low_rank, change.edit, change.basis
    by = _carriers(span.dtype, basis)
    total = PutBack()
    for first, last, exact in span.blocks(start, end):
        before = exact @ basis.mT  # [rows, k]
        _finite(before if len(basis) else exact, in_source=True)
        was = exact.double().square().sum(1) if change.keep_norms and end > 1 else None  # a bias is one row, and has no inputs
        if left is not None:  # a weight [in, out]
            exact.addmm_(left.right.mT[first:last], left.left.mT)
        exact.addmm_(exact @ edit.V.mT, edit.M)
        if was is not None:
            exact.mul_(_back_to(was, exact.double().square().sum(1)).to(exact)[:, None])
        if by is None:
            _finite(span.write(first, exact), in_source=False)
            continue
        after = exact @ basis.mT
        values = exact.to(span.dtype).to(exact.dtype)
        carrying, error = carried(exact[:, by.rows].mT.contiguous(), (values @ basis.mT - after).mT.contiguous(), by, _rounding(span.dtype))
        values[:, by.rows] = carrying.mT
        _finite(error, in_source=False)
        span.write(first, values)
        total += PutBack(float(error.square().sum()), float((after - before).square().sum()))
    return total


def _by_columns(span: Span, rows: int, change: Change) -> PutBack:
    """A whole matrix whose rows are the outputs."""
    edit, basis, low_rank = change.edit, change.basis, change.low_rank
    read = basis if len(basis) else edit.V  # the basis spans V
    left = edit.M.mT if low_rank is None else torch.cat([low_rank.left, edit.M.mT], dim=1)
    before = read.new_zeros(len(read), span.columns)
    was, cross = torch.zeros(span.columns, dtype=torch.float64), left.new_zeros(left.shape[1], span.columns)
    for first, last, block in span.blocks(0, rows):
        before.addmm_(read[:, first:last], block)
        if change.keep_norms:
            was += block.double().square().sum(0)
            cross.addmm_(left[first:last].mT, block)
    _finite(before, in_source=True)
    right = (edit.V @ basis.mT) @ before if len(basis) else before
    if low_rank is not None:
        right = torch.cat([low_rank.right, torch.addmm(right, edit.V @ low_rank.left, low_rank.right)])
    scale = None
    if change.keep_norms:
        now = was + (2 * cross.double() * right.double()).sum(0) + ((left.mT @ left).double() @ right.double() * right.double()).sum(0)
        scale = _back_to(was, now).to(left)
    by = _carriers(span.dtype, basis)
    after = before + (basis @ left) @ right if len(basis) else before[:0]
    after = after if scale is None else after * scale
    error = -after if by is not None else before[:0]
    kept = basis.new_empty(0 if by is None else len(by.rows), span.columns)
    for first, last, exact in span.blocks(0, rows):
        exact.addmm_(left[first:last], right)
        stored = span.write(first, exact if scale is None else exact.mul_(scale))
        if by is None:
            _finite(stored, in_source=False)
            continue
        here = (by.rows >= first) & (by.rows < last)
        kept[here] = exact[by.rows[here] - first]
        error.addmm_(basis[:, first:last], stored)
    if by is None:
        return PutBack()
    values, error = carried(kept, error, by, _rounding(span.dtype))
    _finite(error, in_source=False)
    for row, stored in zip(by.rows.tolist(), values):
        span.write(row, stored[None])
    return PutBack(float(error.square().sum()), float((after - before).square().sum()))


def _back_to(was: Tensor, now: Tensor) -> Tensor:
    """What columns are scaled by to have the length that they had, from squares of lengths; 1 where next to nothing is left."""
    return torch.where(now > NOTHING * was, (was / now).sqrt(), 1.0)


def _carriers(dtype: torch.dtype, basis: Tensor) -> Carriers | None:
    return carriers(basis) if len(basis) and dtype not in EXACT else None


def _rounding(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda values: values.to(dtype).to(values.dtype)


def _finite(values: Tensor, in_source: bool) -> None:
    """Raises NotFinite where not all are numbers: what is no number makes every product with it none, so products tell of whole tensors.

    A sum says that all are at once for almost every tensor; it may overflow where they are.
    """
    if not bool(values.sum().isfinite()) and not bool(values.isfinite().all()):
        raise NotFinite(in_source)
