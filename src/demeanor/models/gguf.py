"""Models out of GGUF files: transformers reads them, with every weight unpacked into plain numbers."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from ..io.gguf import open_gguf
from ..structure.fetched import fetched
from .naming import Place

ALONE = "model.gguf"
_reading = threading.Lock()  # one reads at a time, because parts of the reader are exchanged meanwhile


def gguf_file(name: str, place: Place) -> Path:
    """The GGUF file behind the MODEL argument `name`; one on the Hub is fetched. ModelError where it is damaged or not there."""
    path = Path(place.where)
    if path.is_file():
        return path
    from huggingface_hub import hf_hub_download

    path = Path(fetched(name, lambda: hf_hub_download(place.where, str(place.gguf), revision=place.revision)))
    open_gguf(path)
    return path


def read_gguf(name: str, place: Place, how: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Model, tokenizer and what `from_pretrained` says of the loading; `how` is what it is told of dtype and places."""
    path = gguf_file(name, place)
    with _reading, _alone(path) as folder, _once_each():
        tokenizer = fetched(name, lambda: _tokenizer(folder))
        model, info = fetched(name, lambda: _model(folder, how))
    model.name_or_path = tokenizer.name_or_path = str(path.resolve()) if Path(place.where).is_file() else name
    return model, tokenizer, info


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """A folder that holds this file and no other: the model is the file, and a configuration, a chat template or an adapter that lies
    beside it belongs to something else."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / ALONE).symlink_to(path.resolve())
        yield Path(folder)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, gguf_file=ALONE, trust_remote_code=False)  # no code comes with it


def _model(folder: Path, how: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM, GgufConfig

    unpacking = GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=ALONE, quantization_config=unpacking, trust_remote_code=False, **how)


@contextmanager
def _once_each() -> Iterator[None]:
    """What transformers does over and over while it reads a GGUF file is done once: it parses the whole header three times, and makes the
    table of tensor names for every module, which together takes most of the time. Its bar, which heeds no setting, is not shown.

    All of them are looked up in their modules when they are called.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as reader

    instead: list[tuple[Any, str, Callable[[Any], Any]]] = [
        (gguf, "GGUFReader", cache),
        (gguf, "get_tensor_name_map", cache),
        (reader, "tqdm", lambda bar: partial(bar, disable=True)),
    ]
    own = [getattr(module, name) for module, name, _ in instead]
    try:
        for (module, name, changed), before in zip(instead, own):
            setattr(module, name, changed(before))
        yield
    finally:
        for (module, name, _), before in zip(instead, own):
            setattr(module, name, before)
