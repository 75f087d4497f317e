"""Tensors with a JSON header in a safetensors file: the form of every artefact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import DataError
from .atomic import new_file

FORMAT = 4  # of all artefacts; a file of another one is refused


def write_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """One safetensors file; on any failure the target is as it was."""
    metadata = {"demeanor": json.dumps({"format": FORMAT, **header})}
    with new_file(Path(path)) as work:
        save_file({key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}, work, metadata)


def read_tensors(path: Path, *kinds: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file of those kinds ("control", "direction"); an error names what is wrong with it."""
    path, kind = Path(path), " or ".join(kinds)
    if not path.is_file():
        raise DataError(f"There is no {kind} file {str(path)!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            raw = (file.metadata() or {}).get("demeanor")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise DataError(f"{path} is not a complete safetensors file ({error}); write it again.") from error
    header = json.loads(raw) if raw else {}
    if header.get("kind") not in kinds:
        raise DataError(f"{path} is not a {kind} file (it holds {header.get('kind', 'other tensors')}).")
    if header["format"] != FORMAT:
        age, fix = ("a newer", "upgrade demeanor") if header["format"] > FORMAT else ("an older", "make it anew")
        raise DataError(f"{path} was written by {age} version (format {header['format']}, and this one reads {FORMAT}); {fix}.")
    return tensors, header
