"""Changes of weights that are stored in few bits: their codes are changed, their scales never, and next to nothing of the edit is put back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algebra.rounding import Grid
from ..algebra.settling import settled
from ..arrays import in_torch
from ..io.checkpoint import Checkpoint
from ..io.kernel_copy import read_at, write_at
from ..structure.forms import Packed
from ..structure.stored_values import codes_of, levels_of, scales_of
from .changes import Change
from .patch import NotFinite, PutBack

BLOCK = 1 << 20  # weights that are worked on at a time
GROUP = 256  # of whole groups of scales
ENOUGH = 3e-4  # what may be left of a column's change along the edit: less than that is not worked for


def tasks(packed: Packed, by_columns: bool) -> list[tuple[int, int, int]]:
    """What of a weight is changed by itself, as (matrix, first, last): columns where the outputs are the rows, else rows."""
    rows, columns = packed.shape[-2:]
    across, along = (columns, rows) if by_columns else (rows, columns)
    step = max(1, BLOCK // (along * GROUP)) * GROUP
    return [(number, start, min(start + step, across)) for number in range(math.prod(packed.shape[:-2])) for start in range(0, across, step)]


def patched(source: int, target: int, files: Checkpoint, change: Change, task: tuple[int, int, int]) -> PutBack:
    """Change one task of a packed weight of the open file `source`, and write its codes to the same place of `target`."""
    change, packed, (number, start, end) = change.converted(in_torch), change.packed, task
    assert packed is not None
    by_columns = outputs_are_rows(packed, change.axis)
    rows, columns = packed.shape[-2:]
    top, bottom, left, right = (0, rows, start, end) if by_columns else (start, end, 0, columns)
    window = _window(files, packed, number, (top, bottom), (left, right))
    codes, places, scales = _stored(source, files, packed, number, window)
    levels, back = levels_of(packed.kind)[::2]
    if not by_columns:
        places, scales = places.mT, scales.mT
    grid = Grid(levels, scales.contiguous())
    weight = grid.values(places)
    exact = _changed(weight, change, start, end)
    settled_places, put_back = rounded(grid, weight, exact, change.basis)
    new = torch.where(settled_places == places, codes if by_columns else codes.mT, back[settled_places.long()])
    window.write(target, _joined(new if by_columns else new.mT, packed.per_byte))
    return put_back


def rounded(grid: Grid, weight: Tensor, exact: Tensor, basis: Tensor) -> tuple[Tensor, PutBack]:
    """Places [d, n] on a grid of values near `exact`, without an error along basis [k, d], and what rounding did there; the nearest where the basis is empty.

    weight: the values before the change, which say how little is enough.
    """
    moved = basis @ (exact - weight)
    if not len(basis):
        return grid.nearest(exact), PutBack()
    places, error = settled(exact, basis, grid, ENOUGH * float(moved.square().sum(0).mean().sqrt()))
    return places, PutBack(float(error.square().sum()), float(moved.square().sum()))


def rows_of(files: Checkpoint, packed: Packed, number: int, start: int, end: int) -> Tensor:
    """Rows [start, end) of matrix `number` of a packed weight, as numbers (float32)."""
    window = _window(files, packed, number, (start, end), (0, packed.shape[-1]))
    with (files.folder / files.tensors[packed.codes].shard).open("rb") as file:
        _, places, scales = _stored(file.fileno(), files, packed, number, window)
    return Grid(levels_of(packed.kind)[0], scales).values(places)


def _window(files: Checkpoint, packed: Packed, number: int, rows: tuple[int, int], columns: tuple[int, int]) -> Window:
    """Where some rows and columns of matrix `number` lie in their file."""
    height, width = packed.shape[-2:]
    place = files.tensors[packed.codes].start + number * height * width // packed.per_byte
    return Window(place, width // packed.per_byte, rows, (columns[0] // packed.per_byte, columns[1] // packed.per_byte))


def _stored(file: int, files: Checkpoint, packed: Packed, number: int, window: Window) -> tuple[Tensor, Tensor, Tensor]:
    """The codes in a window of matrix `number`, the places of their values among all levels, and the scales there.

    Raises NotFinite where one of them is no number.
    """
    codes = codes_of(window.read(file), packed.per_byte)
    places = levels_of(packed.kind)[1][codes.long()]
    scales = scales_of(packed, files, number)
    scales = scales if scales.shape[0] == 1 else scales[window.rows[0] : window.rows[1]]
    scales = scales if scales.shape[1] == 1 else scales[:, window.span[0] * packed.per_byte : window.span[1] * packed.per_byte]
    if bool((places < 0).any()) or not bool(scales.isfinite().all()):
        raise NotFinite(in_source=True)
    return codes, places, scales


def outputs_are_rows(packed: Packed, axis: int) -> bool:
    """Whether the outputs, `axis` of the weight as the model has it, are the rows of its matrices in the files."""
    last = axis % len(packed.shape) == len(packed.shape) - 1
    return last if packed.turned else not last


def _changed(weight: Tensor, change: Change, start: int, end: int) -> Tensor:
    """A weight [d, n] as it is to be; its columns are [start, end) of all."""
    if change.low_rank is not None:
        weight = weight + change.low_rank.left @ change.low_rank.right[:, start:end]
    moved: Tensor = change.edit.M.mT @ (change.edit.V @ weight)
    return weight + moved


def _joined(codes: Tensor, per_byte: int) -> Tensor:
    return codes if per_byte == 1 else codes[:, 0::2] | (codes[:, 1::2] << 4)


@dataclass(frozen=True)
class Window:
    """Some rows and bytes of rows of a matrix whose rows are `width` bytes, the first at `place` of a file."""

    place: int
    width: int
    rows: tuple[int, int]
    span: tuple[int, int]

    def read(self, file: int) -> Tensor:
        raw = torch.empty(self.rows[1] - self.rows[0], self.span[1] - self.span[0], dtype=torch.uint8)
        for part, start in self._parts(raw):
            read_at(file, memoryview(part.numpy()).cast("B"), start)
        return raw

    def write(self, file: int, raw: Tensor) -> None:
        for part, start in self._parts(raw.contiguous()):
            write_at(file, memoryview(part.numpy()).cast("B"), start)

    def _parts(self, raw: Tensor) -> Iterator[tuple[Tensor, int]]:
        """The rows with their places, or all of them at once where they are whole."""
        first = self.place + self.rows[0] * self.width + self.span[0]
        if raw.shape[1] == self.width:
            yield raw, first
            return
        yield from ((row, first + number * self.width) for number, row in enumerate(raw))
