"""Proofs that are kept: the layout of a model, under a key of all that its proof depends on.

The key covers the configuration, the modules (class, settings), every bit of the weights as a sum, the fingerprint of the
weights, the sources that prove, and the versions of the libraries. Only what was proven is kept, as JSON with its hash. A model
whose code is not that of a library with a version, or that somebody has hooked, is proven anew every time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, TypeAdapter, ValidationError
from torch import Tensor, nn

from ..errors import DataError
from ..io.atomic import in_one_sentence, work_folder
from ..io.cache import cache_folder
from ..io.json_files import write_json
from ..progress import warn
from ..structure.layout import Layout

PROVEN = "proofs"  # in the cache's folder
SOURCES = (  # of the package, which prove
    *(f"algebra/{name}.py" for name in ("bases", "directions", "edits", "norms")),
    *(f"structure/{name}.py" for name in ("account", "accounting", "blocks", "calls", "embeddings", "layout", "null_test", "proof", "replay", "writers")),
    *(f"runtime/{name}.py" for name in ("acting", "bank", "batches", "caches", "capture", "intervene", "positions", "shared_prefix", "sites", "shown_cache", "steering")),
    *(f"models/{name}.py" for name in ("proven", "kept_proof")),
    "arrays.py",
)
LIBRARIES = ("torch", "transformers", "bitsandbytes", "accelerate")
KNOWN = ("torch", "transformers", "bitsandbytes")  # whose classes are told by their names and the library's version
PLACES = ("_name_or_path", "name_or_path", "transformers_version")  # in a configuration, and of no meaning to a proof
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a number
_warned: set[str] = set()


class _File(BaseModel):
    """What a file holds: a layout, its hash, and the hash of all of its JSON, which covers measured values too."""

    layout: Layout
    hash: str
    digest: str


def key_of(model: Any, weights: str) -> str | None:
    """The key of a model's proof; None where what it depends on cannot be told.

    weights: what tells its weights from others (see `Layout.weights`), empty where that is not known.
    """
    if not weights or not all(_is_known(module) for module in model.modules()):
        return None
    told = [
        _versions(), weights, str(model.device.type), str(model.config._attn_implementation),
        _without_places(model.config.to_dict()), list(_modules(model)), list(_sums(model)),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:32]


def recalled(key: str) -> Layout | None:
    """The layout that was kept under a key; None where there is none, or, with a warning, where its file is damaged."""
    path = _path(key)
    try:
        text = path.read_text(encoding="utf-8") if path is not None else None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        warn(f"{path} cannot be read ({_reason(error)}), so the structure is proven again.")
        return None
    if text is None:
        return None
    try:
        kept = TypeAdapter(_File).validate_json(text)
    except ValidationError:
        kept = None
    if kept is None or kept.hash != kept.layout.hash or kept.digest != _digest(kept.layout):
        warn(f"{path} is damaged and not used, so the structure is proven again.")
        return None
    return kept.layout


def keep(key: str, layout: Layout) -> None:
    """Keep a proven layout under a key. Where that cannot be, it is said once, and is no error."""
    path = _path(key)
    if path is None:
        return
    try:
        # Without a lock: processes that prove one model at once write the same, and whole.
        with in_one_sentence(path), _beside(path) as work:
            write_json(work, {"layout": layout.to_json(), "hash": layout.hash, "digest": _digest(layout)})
            os.replace(work, path)
    except DataError as error:
        if str(path.parent) not in _warned:
            _warned.add(str(path.parent))
            warn(f"The proof of the structure is not kept: {error} Name a folder in DEMEANOR_CACHE that can be written.")


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with work_folder(path) as folder:
        yield folder / path.name


def _path(key: str) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / PROVEN / f"{key}.json"


def _digest(layout: Layout) -> str:
    return hashlib.sha256(json.dumps(layout.to_json(), sort_keys=True).encode()).hexdigest()


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (isinstance(error, OSError) and error.strerror) or "it is no text"


@cache
def _versions() -> dict[str, str]:
    """The sources that prove, as a hash, and the libraries' versions."""
    told, package = hashlib.sha256(), resources.files(__package__.partition(".")[0])
    for name in SOURCES:
        told.update(name.encode() + hashlib.sha256(package.joinpath(name).read_bytes()).digest())
    return {"sources": told.hexdigest(), **{library: _version(library) for library in LIBRARIES}}


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def _is_known(module: nn.Module) -> bool:
    """Whether a module does what its class says, and its class what its library says."""
    own = type(module)
    libraries = {str(place).partition(".")[0] for place in (own.__module__, getattr(own.forward, "__module__", None))}
    # torch keeps the hooks of a module in these, and names them nowhere else.
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return libraries <= set(KNOWN) and not hooked


def _modules(model: nn.Module) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every module's name, class and settings: those of its attributes that are plain values."""
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, int | float | str) and key not in PLACES}
        yield name, f"{type(module).__module__}.{type(module).__qualname__}", plain


@torch.no_grad()
def _sums(model: nn.Module) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    """Every weight's name, dtype, shape and the sum of its bits as whole numbers, which no order of adding changes."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield name, str(tensor.dtype), tuple(tensor.shape), _sum(tensor)


def _sum(tensor: Tensor) -> int:
    size = tensor.element_size()
    if tensor.is_contiguous() and tensor.numel() * size % 8 == 0:
        bits = tensor.detach().reshape(-1).view(torch.int64)  # the whole numbers that are added twenty times faster than smaller ones
    else:
        bits = tensor.detach().view(BITS[size])
    return int(bits.sum(dtype=torch.int64))


def _without_places(values: Any) -> Any:
    """A configuration without where it came from, those inside it included."""
    if not isinstance(values, dict):
        return values
    return {str(key): _without_places(value) for key, value in values.items() if key not in PLACES}
