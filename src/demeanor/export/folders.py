"""The files of a model as one local folder of safetensors, wherever the model is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ModelError
from ..io.atomic import work_folder
from ..models.loading import save_whole
from ..models.naming import Place, resolve
from ..progress import say


@contextmanager
def whole_folder(model: str, out: Path, trust_remote_code: bool) -> Iterator[Path]:
    """The local folder of a model. A Hub model is fetched (safetensors, configuration and tokenizer only); an adapter is
    merged into its model, and a GGUF file unpacked, in a folder beside `out` that is gone afterwards."""
    place = resolve(model)
    if not place.is_adapter and not place.gguf:
        yield place.folder or _fetched(model, place)
        return
    if place.gguf:
        say(f"{model} is a GGUF file, whose weights are packed: what is written is a copy with all of them in float32, as safetensors.")
    with work_folder(out) as whole:
        save_whole(model, whole, trust_remote_code)
        yield whole


def _fetched(model: str, place: Place) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.md", "*.py"]
    try:
        return Path(snapshot_download(place.where, revision=place.revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"The model {model!r} could not be fetched: {' '.join(str(error).split())[:200]}") from error
