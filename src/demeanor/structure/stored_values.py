"""Tensors of a model's files as numbers, whole, whatever form they are stored in; and how many bytes of the files that took."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from ..errors import ModelError
from ..io.checkpoint import Checkpoint
from ..io.dtypes import DTYPES
from ..io.kernel_copy import read_at
from .forms import EXPONENTS, FP4, FP8, INT4, INT8, SCALES, Packed, unpacked

SCALE_DTYPES = {name: DTYPES.get(name, torch.float8_e4m3fn) for name in SCALES}
E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
VALUES = {  # of every code, in its unsigned bits
    FP8: E4M3, FP4: E2M1, INT4: torch.arange(-8.0, 8), INT8: torch.cat([torch.arange(0.0, 128), torch.arange(-128.0, 0)]),
}  # fmt: skip
BLOCK = 1 << 22  # weights in few bits that are unpacked at a time


class StoredValues:
    """The tensors of a checkpoint by their names in the model's own form (see `forms.unpacked`), read one by one.

    Files are read, not mapped, so that what is read counts against no limit of the address space once it is let go. bytes_read: of the
    files, up to now.
    """

    def __init__(self, files: Checkpoint) -> None:
        self.files = files
        self.source, self.packed = unpacked(files)
        self.bytes_read = 0

    def size(self, dtype: torch.dtype | None) -> int:
        """Bytes of all tensors in memory: in `dtype` or, where that is None, as they are stored, those that are packed in two bytes a number."""
        plain = {name: one.itemsize for name, one in DTYPES.items()}
        return sum(math.prod(stored.shape) * (dtype.itemsize if dtype else plain.get(stored.dtype, 2)) for stored in self.source.tensors.values())

    def read(self, key: str, dtype: torch.dtype) -> Tensor:
        """A whole tensor: as it is stored where it is stored plainly, in `dtype` where it is packed."""
        packed = self.packed.get(key)
        if packed is not None:
            return self._unpacked(packed, dtype)
        stored = self.source.tensors[key]
        if stored.dtype not in DTYPES:
            raise ModelError(f"{key} in {self.files.folder} is stored as {stored.dtype}, which cannot be read; use another copy of the model.")
        return self._bytes(key).view(DTYPES[stored.dtype]).reshape(stored.shape)

    def _bytes(self, key: str, first: int = 0, count: int | None = None) -> Tensor:
        """Some bytes of a tensor of the files, uint8."""
        stored = self.files.tensors[key]
        raw = torch.empty(stored.end - stored.start if count is None else count, dtype=torch.uint8)
        if raw.numel():
            with (self.files.folder / stored.shard).open("rb", buffering=0) as file:
                read_at(file.fileno(), memoryview(raw.numpy()), stored.start + first)
        self.bytes_read += raw.numel()
        return raw

    def _unpacked(self, packed: Packed, dtype: torch.dtype) -> Tensor:
        rows, columns = packed.shape[-2:]
        count, size = math.prod(packed.shape[:-2]), rows * columns // packed.per_byte
        shape = (count, columns, rows) if packed.turned else (count, rows, columns)
        values, levels = torch.empty(shape, dtype=dtype), VALUES[packed.kind]
        step = max(1, BLOCK // columns)
        for number in range(count):
            codes = self._bytes(packed.codes, number * size, size).reshape(rows, columns // packed.per_byte)
            scales = _as_stored(packed, self.files, number)
            for start in range(0, rows, step):
                end = min(start + step, rows)
                block = levels[codes_of(codes[start:end], packed.per_byte).long()] * _at_rows(scales, packed, self.files, start, end)
                if packed.turned:
                    values[number, :, start:end] = block.mT
                else:
                    values[number, start:end] = block
        self.bytes_read += sum(self.files.tensors[key].end - self.files.tensors[key].start for key in (packed.scales, packed.overall) if key)
        return values.reshape(*packed.shape[:-2], *shape[1:])


def scales_of(packed: Packed, source: Checkpoint, number: int) -> Tensor:
    """The scales of matrix `number`, float32 [rows, columns] or [.., 1] where one holds for a whole side, the overall one among them."""
    return _at_rows(_as_stored(packed, source, number), packed, source, 0, packed.shape[-2])


def _as_stored(packed: Packed, source: Checkpoint, number: int) -> Tensor:
    """The scales of matrix `number` as there are some, times the overall one: float32 [blocks of rows, blocks of columns]."""
    stored = source.tensors[packed.scales]
    rows, count = packed.shape[-2], math.prod(packed.shape[:-2])
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
    return scales


def _at_rows(scales: Tensor, packed: Packed, source: Checkpoint, start: int, end: int) -> Tensor:
    """Scales as they stand at every weight of rows [start, end), [1, ..] or [.., 1] where one holds for a whole side."""
    told = source.section("quantization_config").get("weight_block_size")
    blocks = told if isinstance(told, list) and len(told) == 2 else [128, 128]
    for axis, full in ((0, packed.shape[-2]), (1, packed.shape[-1])):
        size = scales.shape[axis]
        first, last = (start, end) if axis == 0 else (0, full)
        if size == full:
            scales = scales.narrow(axis, first, last - first)
        elif size > 1:
            scales = scales.index_select(axis, torch.arange(first, last) // _each(size, full, blocks[axis], packed, source))
    return scales


def _numbers(source: Checkpoint, name: str, first: int, count: int) -> Tensor:
    """Some numbers of a tensor of scales, float32; E8M0 exponents as powers of two."""
    stored = source.tensors[name]
    exponents = stored.dtype in EXPONENTS
    if not exponents and stored.dtype not in SCALES:
        raise ModelError(f"{name} in {source.folder} is stored as {stored.dtype}, and scales are read as {', '.join((*SCALES, *EXPONENTS))}.")
    dtype = torch.uint8 if exponents else SCALE_DTYPES[stored.dtype]
    with (source.folder / stored.shard).open("rb", buffering=0) as file:
        raw = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
        read_at(file.fileno(), memoryview(raw.numpy()), stored.start + first * dtype.itemsize)
    values = raw.view(dtype).float()
    return torch.exp2(values - 127) if exponents else values


def _each(size: int, full: int, block: int, packed: Packed, source: Checkpoint) -> int:
    """How many of `full` weights along an axis share one of `size` scales; ModelError where they do not fit it."""
    each = block if -(-full // block) == size else full // size  # the last block may be a part of one
    if -(-full // each) != size:
        raise ModelError(f"{packed.scales} in {source.folder} does not fit {packed.codes}; download the model again.")
    return each


@cache
def levels_of(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """The values that codes can mean, sorted; the place of every code among them, -1 for what is no number; and a code for every place."""
    values = VALUES[kind]
    levels = values[values.isfinite()].unique()  # sorted
    order = torch.where(values.isfinite(), torch.searchsorted(levels, values), -1).int()
    back = torch.stack([(order == place).nonzero()[0, 0] for place in range(len(levels))]).to(torch.uint8)
    return levels, order, back


def codes_of(raw: Tensor, per_byte: int) -> Tensor:
    """Bytes [rows, n] as codes [rows, n * per_byte], the low half of a byte first."""
    return raw if per_byte == 1 else torch.stack([raw & 15, raw >> 4], dim=-1).flatten(-2)
