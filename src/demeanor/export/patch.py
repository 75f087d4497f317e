"""Changes of stored tensors, from one open file into another: a block of rows at a time, in float32, rounded so that the edit is kept.

A weight whose rows are outputs is read twice: what its rows say together along the edit is known only when all were read.
All of it is numpy's: what files hold is changed without torch, which takes longer to import than most files take to be edited.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from ..algebra.rounding import Carriers, carried, carriers
from ..io.checkpoint import Stored
from ..io.floats import STORED, Numbers, rounded, widened
from ..io.kernel_copy import read_at, write_at
from .changes import Change

BLOCK_BYTES = 1 << 19  # of a tensor held as float32 at a time: with what is computed of it, it stays in a core's own cache
BLOCKS = 16  # that are read, rounded and written together, where rows are changed each by itself
NOTHING = 1e-6  # of the square of a length: what is left there is rounding, and is not scaled up
EXACT = ("F32", "F64")  # rounding to these puts back nothing to speak of


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


def share_of(put_back: Mapping[str, PutBack]) -> float | None:
    """What is left in all tensors together; None where nothing was to go."""
    return sum(put_back.values(), PutBack()).share


def worst_of(put_back: Mapping[str, PutBack]) -> tuple[str, float] | None:
    """The tensor in which most is left, and its share."""
    shares = {name: share for name, one in put_back.items() if (share := one.share) is not None}
    return max(shares.items(), key=lambda item: item[1], default=None)


class Span:
    """Rows of one matrix [rows, columns] in a pair of open files, `place` its first byte in both.

    One block of rows is held as numbers at a time, in buffers that are used again and again: fresh memory costs more than the arithmetic.
    """

    def __init__(self, source: int, target: int, place: int, columns: int, dtype: str) -> None:
        self.source, self.target, self.place, self.columns, self.dtype = source, target, place, columns, dtype
        self.step = max(1, BLOCK_BYTES // (4 * columns))
        self.work = np.dtype(np.float64 if dtype == "F64" else np.float32)
        self._raw = np.empty((self.step, columns), dtype=STORED[dtype])
        self._values, self._spare = (np.empty((self.step, columns), dtype=self.work) for _ in range(2))

    def blocks(self, start: int, end: int, held: Numbers | None = None) -> Iterator[tuple[int, int, Numbers]]:
        """The rows in [start, end) as numbers that may be changed: first row, last row, block. held: these rows, where they were read before."""
        for first in range(start, end, self.step):
            last = min(first + self.step, end)
            stored = self.read(first, self._raw[: last - first]) if held is None else held[first - start : last - start]
            yield first, last, widened(stored, self.dtype, self._values[: last - first])

    def rows(self, numbers: Sequence[int]) -> Numbers:
        """Single rows as numbers that may be changed."""
        stored = np.empty((len(numbers), self.columns), dtype=STORED[self.dtype])
        for row, number in zip(stored, numbers):
            self.read(number, row)
        return widened(stored, self.dtype, np.empty(stored.shape, dtype=self.work))

    def read(self, first: int, into: Numbers) -> Numbers:
        """Rows from `first` on, as they are stored."""
        read_at(self.source, memoryview(into.view(np.uint8)).cast("B"), self._at(first))
        return into

    def add_product(self, block: Numbers, left: Numbers, right: Numbers) -> None:
        """block += left right, without fresh memory."""
        block += np.matmul(left, right, out=self._spare[: len(block)])

    def rounded(self, values: Numbers, stored: Numbers) -> Numbers:
        """A block of values as numbers that can be stored, which `stored` becomes. They are there until the next block."""
        return rounded(values, self.dtype, stored, self._spare[: len(values)])

    def write(self, first: int, values: Numbers) -> Numbers:
        """Store the values of rows from `first` on, a block at most; returns what is stored, as numbers."""
        stored = self._raw[: len(values)]
        numbers = self.rounded(values, stored)
        self.write_stored(first, stored)
        return numbers

    def write_stored(self, first: int, stored: Numbers) -> None:
        write_at(self.target, memoryview(stored.view(np.uint8)).cast("B"), self._at(first))

    def _at(self, row: int) -> int:
        return self.place + row * self.columns * self._raw.itemsize


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
    form = matrices(stored.shape, change.axis)
    place = stored.start + number * form.rows * form.columns * STORED[stored.dtype].itemsize
    span = Span(source, target, place, form.columns, stored.dtype)
    change = change.in_numpy(span.work.name)
    with np.errstate(all="ignore"):  # what is no number is told by what became of it
        return _by_rows(span, start, end, change) if form.axis == 1 else _by_columns(span, form.rows, change)


def _by_rows(span: Span, start: int, end: int, change: Change) -> PutBack:
    """Rows that are changed each by itself: their columns are the outputs. They are read and written at once, and changed block by block."""
    added, edit, basis = change.low_rank, change.edit, change.basis
    by = _carriers(span.dtype, basis)
    stored = span.read(start, np.empty((end - start, span.columns), dtype=STORED[span.dtype]))
    moved, error = 0.0, np.empty((len(basis), end - start), dtype=span.work)
    kept = np.empty((0 if by is None else len(by.rows), end - start), dtype=span.work)
    V, M = _paired(edit.V.mT, edit.M)
    own = None if added is None else _paired(added.right.mT, added.left.mT)  # a weight [in, out]
    for first, last, exact in span.blocks(start, end, stored):
        here = slice(first - start, last - start)
        before = exact @ basis.mT  # [rows, k]
        _finite(before if len(basis) else exact, in_source=True)
        was = _squares(exact, 1) if change.keep_norms and end > 1 else None  # a bias is one row, and has no inputs
        if own is not None:
            span.add_product(exact, own[0][first:last], own[1])
        span.add_product(exact, exact @ V, M)
        if was is not None:
            exact *= _back_to(was, _squares(exact, 1)).astype(span.work)[:, None]
        if by is None:
            _finite(span.rounded(exact, stored[here]), in_source=False)
            continue
        after = exact @ basis.mT
        moved += float(np.square(after - before).sum())
        kept[:, here] = exact[:, by.rows].mT
        error[:, here] = (span.rounded(exact, stored[here]) @ basis.mT - after).mT
    if by is not None:
        carrying, error = carried(kept, error, by, partial(_nearest, span.dtype))
        _finite(error, in_source=False)
        stored[:, by.rows] = _stored(span.dtype, carrying).mT
    span.write_stored(start, stored)
    return PutBack() if by is None else PutBack(float(np.square(error).sum()), moved)


def _by_columns(span: Span, rows: int, change: Change) -> PutBack:
    """A whole matrix whose rows are the outputs."""
    edit, basis, low_rank = change.edit, change.basis, change.low_rank
    read = basis if len(basis) else edit.V  # the basis spans V
    left = edit.M.mT if low_rank is None else np.concat([low_rank.left, edit.M.mT], axis=1)
    before = np.zeros((len(read), span.columns), dtype=span.work)
    was, cross = np.zeros(span.columns), np.zeros((left.shape[1], span.columns), dtype=span.work)
    for first, last, block in span.blocks(0, rows):
        before += read[:, first:last] @ block
        if change.keep_norms:
            was += _squares(block, 0)
            cross += left[first:last].mT @ block
    _finite(before, in_source=True)
    right = (edit.V @ basis.mT) @ before if len(basis) else before
    if low_rank is not None:
        right = np.concat([low_rank.right, right + (edit.V @ low_rank.left) @ low_rank.right])
    scale = None
    if change.keep_norms:
        now = was + (2 * cross.astype(np.float64) * right).sum(0) + ((left.mT @ left).astype(np.float64) @ right * right).sum(0)
        scale = _back_to(was, now).astype(span.work)
    by = _carriers(span.dtype, basis)
    after = before + (basis @ left) @ right if len(basis) else before[:0]
    after = after if scale is None else after * scale
    error = -after if by is not None else before[:0]
    carrying = [] if by is None else by.rows.tolist()
    kept = span.rows(carrying) + left[carrying] @ right  # read before anything is written: both files may be one
    kept = kept if scale is None else kept * scale
    left, right = _paired(left, right)
    for first, last, exact in span.blocks(0, rows):
        span.add_product(exact, left[first:last], right)
        if scale is not None:
            exact *= scale
        stored = span.write(first, exact)
        if by is None:
            _finite(stored, in_source=False)
            continue
        error += basis[:, first:last] @ stored
    if by is None:
        return PutBack()
    values, error = carried(kept, error, by, partial(_nearest, span.dtype))
    _finite(error, in_source=False)
    for row, stored in zip(carrying, _stored(span.dtype, values)):
        span.write_stored(row, stored)
    return PutBack(float(np.square(error).sum()), float(np.square(after - before).sum()))


def _paired(left: Numbers, right: Numbers) -> tuple[Numbers, Numbers]:
    """Two halves of a map with a rank of 2 at least: a product of one column with one row takes numpy five times as long as one of two with two."""
    if left.shape[1] != 1:
        return left, right
    return np.pad(left, ((0, 0), (0, 1))), np.pad(right, ((0, 1), (0, 0)))


def _squares(values: Numbers, axis: int) -> Numbers:
    """Squares of the lengths along an axis, float64."""
    return np.square(values).sum(axis=axis, dtype=np.float64)  # type: ignore[no-any-return]


def _back_to(was: Numbers, now: Numbers) -> Numbers:
    """What columns are scaled by to have the length that they had, from squares of lengths; 1 where next to nothing is left."""
    return np.where(now > NOTHING * was, np.sqrt(was / now), 1.0)


def _carriers(dtype: str, basis: Numbers) -> Carriers | None:
    return _carriers_of(basis.tobytes(), basis.shape[1]) if len(basis) and dtype not in EXACT else None


@lru_cache(maxsize=16)
def _carriers_of(basis: bytes, d: int) -> Carriers:
    """The same for every tensor that is edited along the same directions (float32), as most are."""
    return carriers(np.frombuffer(basis, dtype=np.float32).reshape(-1, d))


def _nearest(dtype: str, values: Numbers) -> Numbers:
    """The nearest numbers that can be stored."""
    return rounded(values.copy(), dtype, np.empty(values.shape, dtype=STORED[dtype]), np.empty_like(values))


def _stored(dtype: str, values: Numbers) -> Numbers:
    """Numbers as they are stored."""
    stored = np.empty(values.shape, dtype=STORED[dtype])
    rounded(values.copy(), dtype, stored, np.empty_like(values))
    return stored


def _finite(values: Numbers, in_source: bool) -> None:
    """Raises NotFinite where not all are numbers: what is no number makes every product with it none, so products tell of whole tensors.

    A sum says that all are at once for almost every tensor; it may overflow where they are.
    """
    if not math.isfinite(values.sum()) and not np.isfinite(values).all():
        raise NotFinite(in_source)
