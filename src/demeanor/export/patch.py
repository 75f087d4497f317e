"""Changes of stored tensors, from one open file into another: a block of rows at a time, in float32, rounded so that the edit is kept.

A weight whose rows are outputs is read twice: what its rows say together along the edit is known only when all were read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..algebra.rounding import Carriers, carried, carriers
from ..io.checkpoint import DTYPES, Stored
from ..io.kernel_copy import read_at, write_at
from .changes import Change

BLOCK_BYTES = 1 << 20  # of a tensor held as float32 at a time: it stays in a core's own cache, where the arithmetic takes a third of the time
BLOCKS = 8  # that are read, rounded and written together, where rows are changed each by itself
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

    One block of rows is held as numbers at a time, in buffers that are used again and again: fresh memory costs more than the arithmetic.
    """

    def __init__(self, source: int, target: int, place: int, columns: int, dtype: torch.dtype, work: torch.dtype) -> None:
        self.source, self.target, self.place, self.columns, self.dtype = source, target, place, columns, dtype
        self.step = max(1, BLOCK_BYTES // (4 * columns))
        self._raw = torch.empty(self.step, columns, dtype=dtype)
        self._values = torch.empty(self.step, columns, dtype=work)

    def blocks(self, start: int, end: int, held: Tensor | None = None) -> Iterator[tuple[int, int, Tensor]]:
        """The rows in [start, end) as numbers that may be changed: first row, last row, block. held: these rows, where they were read before."""
        for first in range(start, end, self.step):
            last = min(first + self.step, end)
            raw = self.read(first, self._raw[: last - first]) if held is None else held[first - start : last - start]
            yield first, last, self._values[: last - first].copy_(raw)

    def rows(self, numbers: Sequence[int]) -> Tensor:
        """Single rows as numbers that may be changed."""
        raw = torch.empty(len(numbers), self.columns, dtype=self.dtype)
        for row, number in zip(raw, numbers):
            self.read(number, row)
        return raw.to(self._values.dtype)

    def read(self, first: int, into: Tensor) -> Tensor:
        """Rows from `first` on, as they are stored."""
        read_at(self.source, _bytes(into), self._at(first))
        return into

    def write(self, first: int, values: Tensor) -> Tensor:
        """Store the values of rows from `first` on, a block at most, and make them what is stored."""
        stored = self._raw[: len(values)].copy_(values)
        self.write_stored(first, stored)
        return values.copy_(stored)

    def write_stored(self, first: int, stored: Tensor) -> None:
        write_at(self.target, _bytes(stored), self._at(first))

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
    step = max(1, BLOCKS * BLOCK_BYTES // (4 * form.columns))
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
    """Rows that are changed each by itself: their columns are the outputs. They are read and written at once, and changed block by block."""
    left, edit, basis = change.low_rank, change.edit, change.basis
    by = _carriers(span.dtype, basis)
    stored = span.read(start, torch.empty(end - start, span.columns, dtype=span.dtype))
    moved, error, kept = 0.0, basis.new_empty(len(basis), end - start), basis.new_empty(0 if by is None else len(by.rows), end - start)
    for first, last, exact in span.blocks(start, end, stored):
        here = slice(first - start, last - start)
        before = exact @ basis.mT  # [rows, k]
        _finite(before if len(basis) else exact, in_source=True)
        was = exact.double().square().sum(1) if change.keep_norms and end > 1 else None  # a bias is one row, and has no inputs
        if left is not None:  # a weight [in, out]
            exact.addmm_(left.right.mT[first:last], left.left.mT)
        exact.addmm_(exact @ edit.V.mT, edit.M)
        if was is not None:
            exact.mul_(_back_to(was, exact.double().square().sum(1)).to(exact)[:, None])
        if by is None:
            _finite(exact.copy_(stored[here].copy_(exact)), in_source=False)
            continue
        after = exact @ basis.mT
        moved += float((after - before).square().sum())
        kept[:, here] = exact[:, by.rows].mT
        error[:, here] = (exact.copy_(stored[here].copy_(exact)) @ basis.mT - after).mT
    if by is not None:
        carrying, error = carried(kept, error, by, _rounding(span.dtype))
        _finite(error, in_source=False)
        stored[:, by.rows] = carrying.mT.to(span.dtype)
    span.write_stored(start, stored)
    return PutBack() if by is None else PutBack(float(error.square().sum()), moved)


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
    carrying = [] if by is None else by.rows.tolist()
    kept = span.rows(carrying).addmm_(left[carrying], right)  # read before anything is written: both files may be one
    kept = kept if scale is None else kept.mul_(scale)
    for first, last, exact in span.blocks(0, rows):
        exact.addmm_(left[first:last], right)
        stored = span.write(first, exact if scale is None else exact.mul_(scale))
        if by is None:
            _finite(stored, in_source=False)
            continue
        error.addmm_(basis[:, first:last], stored)
    if by is None:
        return PutBack()
    values, error = carried(kept, error, by, _rounding(span.dtype))
    _finite(error, in_source=False)
    for row, stored in zip(carrying, values.to(span.dtype)):
        span.write_stored(row, stored)
    return PutBack(float(error.square().sum()), float((after - before).square().sum()))


def _back_to(was: Tensor, now: Tensor) -> Tensor:
    """What columns are scaled by to have the length that they had, from squares of lengths; 1 where next to nothing is left."""
    return torch.where(now > NOTHING * was, (was / now).sqrt(), 1.0)


def _carriers(dtype: torch.dtype, basis: Tensor) -> Carriers | None:
    return _carriers_of(basis.numpy().tobytes(), basis.shape[1]) if len(basis) and dtype not in EXACT else None


@lru_cache(maxsize=16)
def _carriers_of(basis: bytes, d: int) -> Carriers:
    """The same for every tensor that is edited along the same directions (float32), as most are."""
    return carriers(torch.frombuffer(bytearray(basis), dtype=torch.float32).reshape(-1, d))


def _rounding(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda values: values.to(dtype).to(values.dtype)


def _finite(values: Tensor, in_source: bool) -> None:
    """Raises NotFinite where not all are numbers: what is no number makes every product with it none, so products tell of whole tensors.

    A sum says that all are at once for almost every tensor; it may overflow where they are.
    """
    if not bool(values.sum().isfinite()) and not bool(values.isfinite().all()):
        raise NotFinite(in_source)
