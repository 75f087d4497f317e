"""Changes of weights that are stored in few bits: their codes are changed, their scales never, and nothing of the edit is put back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..algebra.rounding import Grid, settled
from ..errors import ModelError
from ..io.checkpoint import Checkpoint
from ..io.kernel_copy import read_at, write_at
from .changes import Change
from .forms import EXPONENTS, SCALES, VALUES, Packed
from .patch import NotFinite, PutBack

BLOCK = 1 << 20  # weights that are worked on at a time
GROUP = 256  # of whole groups of scales


def scales_of(packed: Packed, source: Checkpoint, number: int) -> Tensor:
    """The scales of matrix `number`, float32 [rows, columns] or [.., 1] where one holds for a whole side, the overall one among them."""
    stored = source.tensors[packed.scales]
    rows, columns = packed.shape[-2:]
    count = math.prod(packed.shape[:-2])
    size = math.prod(stored.shape)
    if size == 1:
        scales = _numbers(source, packed.scales, 0, 1).reshape(1, 1)
    else:
        each = size // count
        high = each if len(stored.shape) == 1 or each == rows else each // stored.shape[-1]
        scales = _numbers(source, packed.scales, number * each, each).reshape(high, each // high)
    if packed.overall is not None:
        alone = math.prod(source.tensors[packed.overall].shape) != count
        overall = _numbers(source, packed.overall, 0 if alone else number, 1)
        scales = scales / overall if packed.scaling == "divided" else scales * overall
    told = source.section("quantization_config").get("weight_block_size")
    blocks = told if isinstance(told, list) and len(told) == 2 else [128, 128]
    for axis, full in ((0, rows), (1, columns)):
        scales = _spread(scales, axis, full, blocks[axis], packed, source)
    return scales


def _numbers(source: Checkpoint, name: str, first: int, count: int) -> Tensor:
    """Some numbers of a tensor of scales, float32; E8M0 exponents as powers of two."""
    stored = source.tensors[name]
    exponents = stored.dtype in EXPONENTS
    if not exponents and stored.dtype not in SCALES:
        raise ModelError(f"{name} in {source.folder} is stored as {stored.dtype}, and scales are read as {', '.join((*SCALES, *EXPONENTS))}.")
    dtype = torch.uint8 if exponents else SCALES[stored.dtype]
    with (source.folder / stored.shard).open("rb") as file:
        file.seek(stored.start + first * dtype.itemsize)
        values = torch.frombuffer(bytearray(file.read(count * dtype.itemsize)), dtype=dtype).float()
    return torch.exp2(values - 127) if exponents else values


def _spread(scales: Tensor, axis: int, full: int, block: int, packed: Packed, source: Checkpoint) -> Tensor:
    """Scales as they stand at every weight along an axis of `full` weights; ModelError where they do not fit it."""
    size = scales.shape[axis]
    if size in (1, full):
        return scales
    each = full // size if full % size == 0 else block
    if -(-full // each) != size:
        raise ModelError(f"{packed.scales} in {source.folder} does not fit {packed.codes}; download the model again.")
    return scales.repeat_interleave(each, axis).narrow(axis, 0, full)


def tasks(packed: Packed, by_columns: bool) -> list[tuple[int, int, int]]:
    """What of a weight is changed by itself, as (matrix, first, last): columns where the outputs are the rows, else rows."""
    rows, columns = packed.shape[-2:]
    across, along = (columns, rows) if by_columns else (rows, columns)
    step = max(1, BLOCK // (along * GROUP)) * GROUP
    return [(number, start, min(start + step, across)) for number in range(math.prod(packed.shape[:-2])) for start in range(0, across, step)]


def patched(source: int, target: int, files: Checkpoint, change: Change, task: tuple[int, int, int]) -> PutBack:
    """Change one task of a packed weight of the open file `source`, and write its codes to the same place of `target`."""
    packed, (number, start, end) = change.packed, task
    assert packed is not None
    by_columns = outputs_are_rows(packed, change.axis)
    rows, columns = packed.shape[-2:]
    top, bottom, left, right = (0, rows, start, end) if by_columns else (start, end, 0, columns)
    window = _window(files, packed, number, (top, bottom), (left, right))
    codes, places, scales = _stored(source, files, packed, number, window)
    levels, back = _levels(packed.kind)[::2]
    if not by_columns:
        places, scales = places.mT, scales.mT
    grid = Grid(levels, scales.contiguous())
    weight = grid.values(places)
    exact = _changed(weight, change, start, end)
    settled_places, error = settled(exact, change.basis, grid) if len(change.basis) else (grid.nearest(exact), exact[:0])
    settled_places = settled_places.clamp(0, len(levels) - 1)
    new = torch.where(settled_places == places, codes if by_columns else codes.mT, back[settled_places.long()])
    window.write(target, _joined(new if by_columns else new.mT, packed.per_byte))
    moved = change.basis @ (exact - weight)
    return PutBack(float(error.square().sum()), float(moved.square().sum()))


def rows_of(files: Checkpoint, packed: Packed, number: int, start: int, end: int) -> Tensor:
    """Rows [start, end) of matrix `number` of a packed weight, as numbers (float32)."""
    window = _window(files, packed, number, (start, end), (0, packed.shape[-1]))
    with (files.folder / files.tensors[packed.codes].shard).open("rb") as file:
        _, places, scales = _stored(file.fileno(), files, packed, number, window)
    return Grid(_levels(packed.kind)[0], scales).values(places)


def _window(files: Checkpoint, packed: Packed, number: int, rows: tuple[int, int], columns: tuple[int, int]) -> _Window:
    """Where some rows and columns of matrix `number` lie in their file."""
    height, width = packed.shape[-2:]
    place = files.tensors[packed.codes].start + number * height * width // packed.per_byte
    return _Window(place, width // packed.per_byte, rows, (columns[0] // packed.per_byte, columns[1] // packed.per_byte))


def _stored(file: int, files: Checkpoint, packed: Packed, number: int, window: _Window) -> tuple[Tensor, Tensor, Tensor]:
    """The codes in a window of matrix `number`, the places of their values among all levels, and the scales there.

    Raises NotFinite where one of them is no number.
    """
    codes = _codes(window.read(file), packed.per_byte)
    places = _levels(packed.kind)[1][codes.long()]
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
    return weight + change.edit.M.mT @ (change.edit.V @ weight)


@cache
def _levels(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """The values that codes can mean, sorted; the place of every code among them, -1 for what is no number; and a code for every place."""
    values = VALUES[kind]
    levels = values[values.isfinite()].unique()  # sorted
    order = torch.where(values.isfinite(), torch.searchsorted(levels, values), -1).int()
    back = torch.stack([(order == place).nonzero()[0, 0] for place in range(len(levels))]).to(torch.uint8)
    return levels, order, back


def _codes(raw: Tensor, per_byte: int) -> Tensor:
    """Bytes [rows, n] as codes [rows, n * per_byte], the low half of a byte first."""
    return raw if per_byte == 1 else torch.stack([raw & 15, raw >> 4], dim=-1).flatten(-2)


def _joined(codes: Tensor, per_byte: int) -> Tensor:
    return codes if per_byte == 1 else codes[:, 0::2] | (codes[:, 1::2] << 4)


@dataclass(frozen=True)
class _Window:
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
