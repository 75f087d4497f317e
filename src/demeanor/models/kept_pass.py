"""What a pass through a model keeps on disk: the residual stream of every batch behind the last block, and what was found up to there.

All of it lies in one folder. A pass that is killed in the middle of a block goes on before that block: the stream before it stays until
the one behind it is whole.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..io.checkpoint import read_json
from ..io.json_files import write_json
from ..io.kernel_copy import read_at, write_at

# Names of files: the stream behind so many blocks, one that is being written, what was found in a block, what all of it depends on.
STREAM, PART, FOUND, KEY = "stream", "part", "found", "key"


def of_key(folder: Path, key: str) -> Path:
    """The folder as a pass with this key (what it depends on) may use it: what another one left there goes.

    Raises DataError for a folder that holds something and was never a pass's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / KEY
    if not file.is_file() and any(folder.iterdir()):
        raise DataError(f"{folder} holds something else, and a pass keeps what it has in a folder of its own; name an empty or a new one.")
    if not file.is_file() or file.read_text(encoding="utf-8") != key:
        for path in folder.iterdir():
            if path != file:
                path.unlink()
        file.write_text(key, encoding="utf-8")
    return folder


def part_of(folder: Path, name: str) -> Path:
    """A folder inside, for one of several passes."""
    (folder / name).mkdir(exist_ok=True)
    return folder / name


class KeptPass:
    """The files of a pass in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: list[tuple[int, tuple[int, ...]]] = []
        self.dtype = torch.float32

    @property
    def done(self) -> int | None:
        """How many blocks the stream has passed; None where it has not come to the first one yet."""
        numbers = [int(path.suffix[1:]) for path in self.folder.glob(f"{STREAM}.*") if path.suffix[1:].isdigit()]
        return max(numbers, default=None)

    def lay_out(self, batch: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Say how large the stream of the next batch is, [row, token, ...], and of what numbers."""
        self.dtype = dtype
        self._places[batch:] = [(self.size, shape)]

    @property
    def size(self) -> int:
        """Bytes of the stream of all batches that were laid out."""
        if not self._places:
            return 0
        start, shape = self._places[-1]
        return start + torch.Size(shape).numel() * self.dtype.itemsize

    def stream(self, blocks: int, batch: int, row: int | None = None) -> Tensor:
        """The stream of a batch, or of one row of it, behind so many blocks: [row, token, ...]."""
        start, shape = self._places[batch]
        if row is not None:
            start, shape = start + row * torch.Size(shape[1:]).numel() * self.dtype.itemsize, (1, *shape[1:])
        value = torch.empty(shape, dtype=self.dtype)
        with (self.folder / f"{STREAM}.{blocks}").open("rb", buffering=0) as file:
            read_at(file.fileno(), memoryview(value.view(-1).view(torch.uint8).numpy()), start)
        return value

    def write(self, batch: int, value: Tensor) -> None:
        """The stream of a batch behind the next block."""
        start, shape = self._places[batch]
        raw = value.detach().to("cpu", self.dtype).reshape(shape).contiguous().view(-1).view(torch.uint8)
        handle = os.open(self.folder / PART, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            write_at(handle, memoryview(raw.numpy()), start)
        finally:
            os.close(handle)

    def passed(self, blocks: int) -> None:
        """All batches have passed so many blocks: what was written is the stream there, and that before it goes."""
        os.replace(self.folder / PART, self.folder / f"{STREAM}.{blocks}")
        if blocks:
            (self.folder / f"{STREAM}.{blocks - 1}").unlink(missing_ok=True)

    def keep(self, number: int, found: dict[str, Any]) -> None:
        """What was found in block `number`, as JSON holds it."""
        work = self.folder / f"{FOUND}.{PART}"
        write_json(work, found)
        os.replace(work, self.folder / f"{FOUND}.{number}")

    def found(self, number: int) -> dict[str, Any]:
        return read_json(self.folder / f"{FOUND}.{number}")
