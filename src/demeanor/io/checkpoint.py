"""Model folders as files: which safetensors shards there are, and where each tensor's bytes lie.

Nothing here loads a model. Headers are read and checked against the file's size, so that a truncated
download is named before anything else happens.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelError
from .claims import refuse_output

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor's place: bytes [start, end) of a shard."""

    shard: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json and safetensors shards; `tensors` by the names in the files."""

    folder: Path
    config: dict[str, Any]
    shards: tuple[str, ...]
    tensors: dict[str, Stored]

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(stored.end - stored.start for stored in self.tensors.values())


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read config, index and every shard's header; a ModelError names what is missing or damaged."""
    if folder.is_file():
        raise ModelError(f"{folder} is a file; give the model's folder, which holds config.json and safetensors files.")
    if not folder.is_dir():
        raise ModelError(f"There is no model folder {folder}; give a folder that holds config.json and safetensors files.")
    refuse_output(folder)
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise ModelError(f"{folder} has no config.json, so it is not a model folder.")
    shards = _shards(folder)
    tensors: dict[str, Stored] = {}
    for shard in shards:
        tensors.update(read_header(folder / shard))
    return Checkpoint(folder, read_json(config_path), shards, tensors)


def _shards(folder: Path) -> tuple[str, ...]:
    if (folder / SINGLE).is_file():
        return (SINGLE,)
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f"{folder / INDEX} has no weight_map; download the model again.")
        shards = tuple(sorted(set(weight_map.values())))
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            raise ModelError(f"{folder} lacks {missing[0]}, which its index names; download the model again.")
        return shards
    raise ModelError(f"{folder} has no {SINGLE} and no {INDEX}; save the model as safetensors first.")


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not valid JSON ({error}); download it again.") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} does not hold a JSON object; download it again.")
    return values


def read_header(path: Path) -> dict[str, Stored]:
    """Tensor places of one safetensors file, by name, checked against the file's size."""
    size = path.stat().st_size
    broken = ModelError(f"{path} is not a complete safetensors file ({size} bytes); download or write it again.")
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise broken
        (length,) = struct.unpack("<Q", prefix)
        if 8 + length > size:
            raise broken
        try:
            header = json.loads(file.read(length))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise broken from error
    base = 8 + length
    tensors = {}
    try:
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                tensors[name] = Stored(path.name, entry["dtype"], tuple(entry["shape"]), base + start, base + end)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise broken from error
    if max((stored.end for stored in tensors.values()), default=base) != size:
        raise broken
    return tensors
