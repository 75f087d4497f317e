"""The weights of a model's files as matrices of numbers, whatever form they are stored in, some rows at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ModelError
from ..io.checkpoint import Checkpoint
from ..io.dtypes import DTYPES
from ..io.kernel_copy import read_at
from ..structure.forms import Packed
from .names import FileTensors
from .packed import rows_of

FLOATS = ("F64", "F32", "F16", "BF16")
BLOCK = 1 << 21  # numbers that are read at a time


@dataclass(frozen=True)
class Matrix:
    """One matrix [rows, columns] of a stored weight, which may hold several (experts), or be a vector [rows, 1].

    files: the checkpoint as it lies on the disk. outputs: which axis is d_model, None where that is not asked.
    """

    files: Checkpoint
    key: str
    number: int
    rows: int
    columns: int
    outputs: int | None
    packed: Packed | None

    @property
    def form(self) -> str:
        """How it is stored: a dtype, or the name of a packed form."""
        return self.packed.form if self.packed else self.files.tensors[self.key].dtype

    @property
    def step(self) -> int:
        """How many rows make a block."""
        return max(1, BLOCK // self.columns)

    def read(self, start: int, end: int) -> Tensor:
        """Rows [start, end) as float32."""
        if self.packed is not None:
            return rows_of(self.files, self.packed, self.number, start, end)
        stored = self.files.tensors[self.key]
        dtype = DTYPES[stored.dtype]
        raw = torch.empty(end - start, self.columns, dtype=dtype)
        place = stored.start + (self.number * self.rows + start) * self.columns * dtype.itemsize
        with (self.files.folder / stored.shard).open("rb") as file:
            read_at(file.fileno(), memoryview(raw.view(torch.uint8).numpy()).cast("B"), place)
        return raw.float()


def matrices_of(files: FileTensors, key: str, axis: int | None) -> list[Matrix]:
    """All matrices of a tensor of the files (by its name as the model has it), `axis` of which is d_model.

    Empty for what holds no numbers that are weights: whole numbers, nothing at all. ModelError where no matrix has d_model as an axis.
    """
    packed = files.packed.get(key)
    stored = files.source.tensors[key]
    if packed is None and stored.dtype not in FLOATS:
        return []
    shape = packed.shape if packed else stored.shape
    turned = packed is not None and packed.turned
    sizes = (*shape, 1) if len(shape) == 1 else shape
    if not math.prod(sizes):
        return []
    rows, columns = sizes[-2:] if len(sizes) > 1 else (1, 1)
    outputs = None
    if axis is not None:
        places = {len(shape) - 1: 1, len(shape) - 2: 0} if len(shape) > 1 else {0: 0}
        if axis % len(shape) not in places:
            raise ModelError(f"{key} in {files.source.folder} has d_model as axis {axis} of {list(shape)}; such weights cannot be compared yet.")
        outputs = places[axis % len(shape)] ^ turned
    return [Matrix(files.files, key, number, rows, columns, outputs, packed) for number in range(math.prod(sizes[:-2]))]
