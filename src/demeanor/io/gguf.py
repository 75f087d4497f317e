"""GGUF files as files: of what architecture the model in one is, and where each tensor's bytes lie.

Nothing here loads a model. What is read is the header, so that a file that is cut off is named before anything else happens.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .checkpoint import Stored, fingerprint_of
from .claims import refuse_output

MAGIC, SUFFIX = b"GGUF", ".gguf"
VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # by the number of the type
STRING, ARRAY = 8, 9
NEEDED = ("gguf", "accelerate")  # what transformers takes to read one
ARCHITECTURE, PARTS, ALIGNMENT = "general.architecture", "split.count", "general.alignment"


@dataclass(frozen=True)
class Gguf:
    """A GGUF file; `values` are those of its header that are no lists."""

    path: Path
    values: dict[str, Any]
    tensors: dict[str, Stored]

    @property
    def architecture(self) -> str:
        return str(self.values[ARCHITECTURE])

    @property
    def fingerprint(self) -> str:
        """The same for the same tensors, as for safetensors files."""
        return fingerprint_of(self.path.parent, self.tensors)


def is_gguf(path: Path) -> bool:
    """Whether a file is a GGUF file by its name or by how it begins."""
    if not path.is_file():
        return False
    if path.suffix.lower() == SUFFIX:
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:  # one that may not be read
        return False


def open_gguf(path: Path) -> Gguf:
    """Read the header; a ModelError says what is damaged, what is not there, and which package is missing."""
    refuse_output(path)
    if any(find_spec(package) is None for package in NEEDED):
        raise ModelError(f"{path} is a GGUF file, which takes the extra `gguf`: pip install 'demeanor[gguf]'.")
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise ModelError(f"{path} is not a GGUF file, which begins with {MAGIC.decode()}; download it again.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                values, tensors = _header(view, path)
    except (struct.error, ValueError) as error:  # places past the end, unknown types, no UTF-8
        raise ModelError(f"{path} is not a complete GGUF file ({path.stat().st_size} bytes: {error}); download it again.") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from error
    parts = values.get(PARTS) or 1
    if parts != 1:
        raise ModelError(f"{path} is one of {parts} parts of a model; join them into one file first (llama-gguf-split --merge).")
    return Gguf(path, values, tensors)


def _header(view: mmap.mmap, path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    read = _Reading(view, len(MAGIC))
    version = read.number("I")
    if version not in VERSIONS:
        raise ValueError(f"version {version}, and those that are read are {VERSIONS[0]} and {VERSIONS[1]}")
    tensor_count, value_count = read.number("Q"), read.number("Q")
    values: dict[str, Any] = {}
    for _ in range(value_count):
        key = read.string()
        value = read.value(read.number("I"))
        if value is not None:
            values[key] = value
    if not isinstance(values.get(ARCHITECTURE), str):
        raise ValueError(f"no {ARCHITECTURE}")
    described = [_tensor(read) for _ in range(tensor_count)]
    alignment = values.get(ALIGNMENT, 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"{ALIGNMENT} {alignment!r}")
    base = -(-read.position // alignment) * alignment
    tensors = {name: place(path.name, base) for name, place in described}
    for name, stored in tensors.items():
        if stored.end > len(view):
            raise ValueError(f"{name[:80]!r} ends at byte {stored.end}")
    return values, tensors


def _tensor(read: _Reading) -> tuple[str, Callable[[str, int], Stored]]:
    """A tensor's name, and its place once the file's name and the start of all tensors are known."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    name = read.string()
    shape = tuple(read.number("Q") for _ in range(read.number("I")))[::-1]
    kind = GGMLQuantizationType(read.number("I"))
    block, size = GGML_QUANT_SIZES[kind]
    length = math.prod(shape) // block * size
    return name, partial(_placed, kind.name, shape, read.number("Q"), length)


def _placed(dtype: str, shape: tuple[int, ...], offset: int, length: int, file: str, base: int) -> Stored:
    return Stored(file, dtype, shape, base + offset, base + offset + length)


class _Reading:
    """A place in a header that moves on with what is read; struct.error past the end."""

    def __init__(self, view: mmap.mmap, position: int) -> None:
        self.view, self.position = view, position

    def number(self, kind: str) -> Any:
        (value,) = struct.unpack_from(f"<{kind}", self.view, self.position)
        self.position += struct.calcsize(f"<{kind}")
        return value

    def string(self) -> str:
        length = self.number("Q")
        self._past(length)
        return self.view[self.position - length : self.position].decode("utf-8")

    def value(self, kind: int) -> Any:
        """A number or a string; None for a list, which is passed over."""
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.number(_scalar(kind))
        held, count = self.number("I"), self.number("Q")
        if held != STRING:
            self._past(count * struct.calcsize(f"<{_scalar(held)}"))
            return None
        for _ in range(count):
            self._past(self.number("Q"))
        return None

    def _past(self, length: int) -> None:
        if self.position + length > len(self.view):
            raise ValueError(f"its header goes on to byte {self.position + length}")
        self.position += length


def _scalar(kind: int) -> str:
    if kind not in SCALARS:
        raise ValueError(f"a value of type {kind}")
    return SCALARS[kind]
