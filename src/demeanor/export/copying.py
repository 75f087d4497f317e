"""Copying a model's folder: all that belongs to the model but weights that are not its own, and nothing from outside of the folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import ModelError
from ..io.checkpoint import INDEX, SUFFIX, Checkpoint
from ..progress import track

OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".onnx", ".onnx_data", ".msgpack", ".h5", ".npz", ".ot", ".tflite", SUFFIX)


def copy_model(source: Checkpoint, work: Path) -> tuple[str, ...]:
    """Everything in the folder and its subfolders but weights: the model's own are written apart, and others are left out; returns which.

    Hidden files are no part of a model. Links within the folder, and those of the Hub's cache into its blobs, are copied as the files they
    lead to. Raises ModelError for other links out of the folder: what they
    lead to may be anything, and a copy of it would be given away with the model.
    """
    left_out = []
    paths = list(_below(source.folder))
    for path in track(paths, "Copying", len(paths)):
        name = path.relative_to(source.folder)
        if not path.is_file() or _not_its_own(str(name), source):  # folders that are links, devices, links to nothing
            left_out.append(str(name))
            continue
        if str(name) in source.shards:
            continue
        if not _within(path, source.folder):
            raise ModelError(
                f"{path} is a link to {path.resolve()}, outside of the model's folder; put the file itself there, or remove the link."
            )
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, work / name)
    return tuple(left_out)


def bytes_to_copy(source: Checkpoint) -> int:
    """How many bytes `copy_model` copies."""
    own = (path for path in _below(source.folder) if path.is_file() and str(path.relative_to(source.folder)) not in source.shards)
    return sum(path.stat().st_size for path in own if not _not_its_own(str(path.relative_to(source.folder)), source))


def _below(folder: Path) -> Iterator[Path]:
    """Everything in a folder that is not hidden, and in its subfolders; links to folders are not entered."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)
        else:
            yield path


def _not_its_own(name: str, source: Checkpoint) -> bool:
    """Whether a file holds weights, or tells where some lie, that the model is not read from."""
    if name == INDEX:
        return source.doubled
    return name not in source.shards and Path(name).suffix in OTHER_WEIGHTS


def _within(path: Path, folder: Path) -> bool:
    """Whether a file lies in a folder, or in the blobs of the Hub's cache that the folder is a snapshot of."""
    top, place = folder.resolve(), path.resolve()
    blobs = (top.parent.parent / "blobs").resolve()
    return place.is_relative_to(top) or (top.parent.name == "snapshots" and place.is_relative_to(blobs))
