"""The files of a model as one local folder of safetensors, wherever the model is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..io.atomic import work_folder
from ..models.naming import local_folder, resolve
from ..progress import say


@contextmanager
def whole_folder(model: str, out: Path, trust_remote_code: bool) -> Iterator[Path]:
    """The local folder of a model. A Hub model is fetched (safetensors, configuration and tokenizer only); an adapter is
    merged into its model, and a GGUF file unpacked, in a folder beside `out` that is gone afterwards."""
    place = resolve(model)
    if not place.is_adapter and not place.gguf:
        yield local_folder(model)
        return
    if place.gguf:
        say(f"{model} is a GGUF file, whose weights are packed: what is written is a copy with all of them in float32, as safetensors.")
    from ..models.loading import save_whole

    with work_folder(out) as whole:
        save_whole(model, whole, trust_remote_code)
        yield whole
