"""Model folders as files: which safetensors shards there are, and where each tensor's bytes lie.

Nothing here loads a model. Every shard is opened by the safetensors library, which refuses sizes and places that do not
fit each other, so that a damaged download is named before anything else happens.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import ModelError
from .claims import refuse_output

SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
SUFFIX = ".safetensors"
SAMPLES, SAMPLE_BYTES = 4, 16  # of each tensor, that a fingerprint reads


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

    def section(self, name: str) -> dict[str, Any]:
        """A part of the configuration that is an object of its own; empty where it has none."""
        part = self.config.get(name)
        return part if isinstance(part, dict) else {}

    def read(self, name: str) -> bytes:
        """The bytes of a whole tensor."""
        stored = self.tensors[name]
        with (self.folder / stored.shard).open("rb") as file:
            file.seek(stored.start)
            return file.read(stored.end - stored.start)

    @property
    def doubled(self) -> bool:
        """Whether the folder holds an index of shards as well as the one whole file that is read."""
        return self.shards == (SINGLE,) and (self.folder / INDEX).is_file()

    @property
    def fingerprint(self) -> str:
        """The same for the same tensors, wherever they lie and however they are sharded.

        It covers the name, the dtype and the shape of every tensor, and a few of its bytes at places that are spread over it. It tells
        models apart that were trained or edited; it does not prove that two are equal in every byte.
        """
        return fingerprint_of(self.folder, self.tensors)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read config, index and every shard's header; a ModelError names what is missing or damaged."""
    if folder.is_file():
        raise ModelError(f"{folder} is a file; give the model's folder, which holds config.json and safetensors files, or a GGUF file.")
    if not folder.is_dir():
        raise ModelError(f"There is no model folder {folder}; give a folder that holds config.json and safetensors files.")
    refuse_output(folder)
    _refuse_only_gguf(folder)
    config_path = folder / CONFIG
    if not config_path.is_file():
        raise ModelError(f"{folder} has no config.json, so it is not a model folder.")
    shards = _shards(folder)
    tensors: dict[str, Stored] = {}
    for shard in shards:
        header = read_header(folder / shard)
        twice = next(iter(sorted(tensors.keys() & header.keys())), None)
        if twice is not None:
            raise ModelError(f"{folder} holds the tensor {twice} in {tensors[twice].shard} and in {shard}; remove the file that is not meant.")
        tensors.update(header)
    return Checkpoint(folder, read_json(config_path), shards, tensors)


def _refuse_only_gguf(folder: Path) -> None:
    """Raises ModelError where a folder holds GGUF files and no safetensors: one of them is the model, and it is for the user to say which."""
    packed = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
    if packed and not any(path.suffix == SUFFIX for path in folder.iterdir()):
        more = f" (or another of its {len(packed)} GGUF files)" if len(packed) > 1 else ""
        raise ModelError(f"{folder} holds GGUF files and no safetensors; name the file itself: {packed[0]}{more}.")


def _shards(folder: Path) -> tuple[str, ...]:
    """The files that hold the model: as in transformers, one whole file comes before an index."""
    if (folder / SINGLE).is_file():
        return (SINGLE,)
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f"{folder / INDEX} has no weight_map; download the model again.")
        _refuse_outside(folder, weight_map.values())
        shards = tuple(sorted(set(weight_map.values())))
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            raise ModelError(f"{folder} lacks {missing[0]}, which its index names; download the model again.")
        return shards
    there = sorted(path.name for path in folder.glob(f"*{SUFFIX}"))
    if there:
        raise ModelError(
            f"{folder} holds {len(there)} safetensors files ({there[0]} first) but no {INDEX}, which says what is in which; download that file too, or save the model again."
        )
    raise ModelError(f"{folder} has no {SINGLE} and no {INDEX}; save the model as safetensors first.")


def _refuse_outside(folder: Path, names: Iterable[Any]) -> None:
    """Raises ModelError where an index names what is not simply a safetensors file of its own folder."""
    for name in names:
        plain = isinstance(name, str) and name.isprintable() and not {"/", "\\"} & set(name)
        if not plain or Path(name).suffix != SUFFIX:
            raise ModelError(
                f"{folder / INDEX} names {str(name)[:80]!r}, which is no safetensors file of the same folder; download the model again."
            )


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of thousands of digits; or lists in lists without end
        raise ModelError(f"{path} is not valid JSON ({str(error)[:120]}); download it again.") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} does not hold a JSON object; download it again.")
    return values


def read_header(path: Path) -> dict[str, Stored]:
    """Tensor places of one safetensors file, by name. Raises ModelError for whatever the safetensors library refuses: a file that is
    cut off or too long, tensors that overlap, leave room between them or do not have the size of their shape."""
    try:
        with safe_open(path, framework="np", backend="pread"):  # read, not mapped: a limit on memory counts what is mapped
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is not a complete safetensors file ({path.stat().st_size} bytes: {str(error)[:120]}); download or write it again."
        ) from error
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    base = 8 + length
    return {
        name: Stored(path.name, entry["dtype"], tuple(entry["shape"]), base + entry["data_offsets"][0], base + entry["data_offsets"][1])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def fingerprint_of(folder: Path, tensors: Mapping[str, Stored]) -> str:
    """What `Checkpoint.fingerprint` says, of tensors in files of a folder."""
    told = hashlib.sha256()
    by_shard: dict[str, list[tuple[str, Stored]]] = {}
    for name in sorted(tensors):
        by_shard.setdefault(tensors[name].shard, []).append((name, tensors[name]))
    samples: dict[str, bytes] = {}
    for shard, entries in by_shard.items():
        with (folder / shard).open("rb") as file:
            for name, stored in entries:
                step = max(1, (stored.end - stored.start) // SAMPLES)
                samples[name] = b""
                for start in range(stored.start, stored.end, step):
                    file.seek(start)
                    samples[name] += file.read(min(SAMPLE_BYTES, stored.end - start))
    for name in sorted(samples):
        told.update(repr((name, tensors[name].dtype, tensors[name].shape)).encode() + samples[name])
    return told.hexdigest()[:16]
