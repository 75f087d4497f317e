"""Tensors with a JSON header in a safetensors file: the form of every artefact.

What is read is checked here and by the schemas of the artefacts: a file that is damaged, or was changed by hand, ends in
one sentence that names it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from ..arrays import Array, all_finite, dtype_name, in_numpy, in_torch
from ..errors import DataError
from .atomic import new_file
from .checkpoint import read_header
from .claims import refuse_output
from .floats import STORED, widened

T = TypeVar("T")
Older = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]
FORMAT = 4  # of all artefacts; a file of another one is refused, unless its reader knows that it says the same
HEADER = "demeanor"  # the entry of safetensors' metadata that holds the header
FLOATS = ("float16", "bfloat16", "float32", "float64")
Framework = Literal["pt", "np"]  # as safetensors names torch and numpy


@dataclass(frozen=True)
class Stored:
    """An artefact as it lies in a file: named tensors, and the header's JSON."""

    path: Path
    tensors: Mapping[str, Array]
    header: str

    def decoded(self, schema: type[T]) -> T:
        """The header as a schema says. Raises DataError, which names the first place that is wrong."""
        return decoded(schema, self.header, self.path)

    def tensor(self, name: str) -> Array:
        if name not in self.tensors:
            raise DataError(f"{self.path} lacks the tensor {name!r} that its header tells of; write it again.")
        return self.tensors[name]

    def numbers(self, name: str, *shape: int | None) -> Array:
        """A tensor of finite numbers of that shape (None: any size but 0)."""
        tensor = self.tensor(name)
        fits = tensor.ndim == len(shape) and all(size == own if size is not None else own > 0 for size, own in zip(shape, tensor.shape))
        if dtype_name(tensor) not in FLOATS or not fits or not all_finite(tensor):
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            raise DataError(
                f"{self.path}: the tensor {name!r} is {list(tensor.shape)} of {dtype_name(tensor)}, and finite numbers [{sizes}] "
                "are needed; write the file again."
            )
        return tensor

    def maybe(self, name: str, *shape: int | None) -> Array | None:
        """The same of a tensor that need not be there."""
        return self.numbers(name, *shape) if name in self.tensors else None


def write_tensors(path: Path, tensors: dict[str, Array], header: dict[str, Any]) -> None:
    """One safetensors file; on any failure the target is as it was."""
    from safetensors.torch import save_file

    metadata = {HEADER: json.dumps({"format": FORMAT, **header})}
    with new_file(Path(path)) as work:
        save_file({key: in_torch(tensor).detach().cpu().clone().contiguous() for key, tensor in tensors.items()}, work, metadata)


def read_tensors(path: Path, *kinds: str, older: Mapping[int, Older] | None = None, framework: Framework = "pt") -> Stored:
    """A file of those kinds ("control", "direction"); an error names what is wrong with it.

    framework: whose arrays are read. numpy's are float32 where the file holds floats of 16 bits, and torch is not imported for them.
    older: by format, what makes a header of today's of an older one, or None where it may mean something else today.
    """
    path, kind = Path(path), " or ".join(kinds)
    if not path.is_file():
        raise DataError(f"There is no {kind} file {str(path)!r}.")
    refuse_output(path)
    try:
        with safe_open(path, framework=framework) as file:
            raw = (file.metadata() or {}).get(HEADER)
            places = cache(lambda: read_header(path))  # read once, and where it is needed alone
            tensors = {key: _read(file, key, framework, path, places) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:  # some of a dtype that the framework lacks
        raise DataError(f"{path} is not a complete safetensors file ({' '.join(str(error).split())[:120]}); write it again.") from error
    header = _object(raw, path) if raw else {}
    if header.get("kind") not in kinds:
        raise DataError(f"{path} is not a {kind} file (it holds {str(header.get('kind', 'other tensors'))[:40]}).")
    number = header.get("format")
    if isinstance(number, bool) or not isinstance(number, int):
        raise DataError(f"{path} does not say what format it has; write it again.")
    upgraded = (older or {})[number](header) if number in (older or {}) else None
    if upgraded is not None:
        return Stored(path, tensors, json.dumps({**upgraded, "format": FORMAT}))
    if number != FORMAT:
        age, fix = ("a newer", "upgrade demeanor") if number > FORMAT else ("an older", "make it anew")
        raise DataError(f"{path} was written by {age} version (format {number}, and this one reads {FORMAT}); {fix}.")
    return Stored(path, tensors, cast(str, raw))


def _read(file: Any, key: str, framework: Framework, path: Path, places: Callable[[], Mapping[str, Any]]) -> Array:
    """A tensor of an open file, which lies at `path`. Raises DataError for one of a dtype that numpy lacks."""
    if framework == "pt":
        return file.get_tensor(key)
    dtype = file.get_slice(key).get_dtype()
    if dtype != "BF16" and dtype.startswith(("F8", "F4", "F6")):
        raise DataError(f"{path}: the tensor {key!r} is {dtype}, and floats of 16 bits or more are needed; write the file again.")
    if dtype != "BF16":
        return in_numpy(file.get_tensor(key))
    place = places()[key]
    with path.open("rb") as raw:
        raw.seek(place.start)
        stored = np.frombuffer(raw.read(place.end - place.start), dtype=STORED["BF16"]).reshape(place.shape)
    return widened(stored, "BF16", np.empty(place.shape, dtype=np.float32))


def decoded(schema: type[T], text: str, path: Path) -> T:
    """JSON as a schema says: nothing is converted, so a text is no number. Raises DataError, which names the first place that is wrong."""
    try:
        return cast(T, _adapter(cast(Any, schema)).validate_json(text, strict=True))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise DataError(f"{path} is damaged or was changed by hand ({place + ': ' if place else ''}{message}); write it again.") from error


def _object(text: str, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: the header is not valid JSON ({str(error)[:80]}); write the file again.") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: the header is {type(values).__name__}, not an object; write the file again.")
    return values


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)
