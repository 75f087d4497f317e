"""What a MODEL argument stands for: the embedded model, a folder, a GGUF file, a Hub id, or an adapter for one of these; and whether two are the same."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from ..errors import ModelError, did_you_mean
from ..io.checkpoint import CONFIG, INDEX, SINGLE, Checkpoint, open_checkpoint, read_header, read_json
from ..io.claims import refuse_output
from ..io.gguf import SUFFIX, is_gguf, open_gguf
from ..io.hub import HubName
from ..io.plan import EMBEDDED
from ..progress import warn
from ..runtime.adapter import ADAPTER, ADAPTER_WEIGHTS
from ..structure.layout import same_weights

ORGANISM = EMBEDDED


class Place(NamedTuple):
    """Where a model lies: `where` is a local folder or GGUF file, or a Hub id; `gguf` is the name of the GGUF file, if it is one."""

    where: str
    revision: str | None = None
    gguf: str | None = None

    @property
    def folder(self) -> Path | None:
        """The local folder that holds the model; None for a GGUF file and on the Hub."""
        path = Path(self.where)
        return path if self.gguf is None and path.is_dir() else None

    @property
    def is_adapter(self) -> bool:
        return self.folder is not None and (self.folder / ADAPTER).is_file()


def resolve(name: str) -> Place:
    """Where the model behind a MODEL argument lies; local files are checked at once."""
    if not name.strip():
        raise ModelError("MODEL is empty; name organism, a model folder, a GGUF file or a Hub id.")
    if name == ORGANISM:
        return Place(str(resources.files("demeanor") / "organism" / "model"))
    path = Path(name)
    if _exists(path):
        refuse_output(path)
        if is_gguf(path):
            return Place(str(open_gguf(path).path), gguf=path.name)
        if not (path / ADAPTER).is_file():
            open_checkpoint(path)
        return Place(str(path))
    hub, _, file = name.partition(":")
    hub, revision = HubName.of(hub)
    if name.startswith((".", "/", "~")) or hub.count("/") != 1:
        raise ModelError(
            f"There is no model {name!r}{did_you_mean(name, [ORGANISM])}: not a folder here, nor a GGUF file, and a Hub id has the form owner/model."
        )
    if (file or hub).lower().endswith(SUFFIX) is not bool(file):
        raise ModelError(f"There is no model {name!r}: not a file here, and a GGUF file on the Hub is named owner/repo:file.gguf.")
    return Place(hub, revision, file or None)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is longer than names may be
        return False


def is_adapter(name: str) -> bool:
    """Whether MODEL is a folder that holds a PEFT adapter."""
    return resolve(name).is_adapter


def base_of(folder: Path) -> str:
    """The MODEL that an adapter names as its base: as written, or relative to the adapter's folder."""
    config = read_json(folder / ADAPTER)
    base, revision = str(config.get("base_model_name_or_path") or ""), config.get("revision")
    if not base:
        raise ModelError(f"{folder / ADAPTER} names no base_model_name_or_path; write the model it was trained on there.")
    place = folder / base if _exists(folder / base) else Path(base)
    if _exists(place / ADAPTER):
        raise ModelError(f"{folder / ADAPTER} names an adapter as its base, {base}; name the model both were trained on.")
    if _exists(place):
        return str(place)
    return f"{base}@{revision}" if revision and "@" not in base else base


def same_model(name: str, other: str) -> bool:
    """Whether two MODEL arguments stand for the same model: one folder, however it is spelled, or two that hold the same weights."""
    if name == other:
        return True
    places = [_place(name), _place(other)]
    if places[0] is None or places[1] is None:
        return False
    return places[0].samefile(places[1]) or same_weights(weights_of(name), weights_of(other)) is True


def weights_of(name: str) -> str:
    """What tells the weights behind a MODEL argument from others: the fingerprint of its files; empty where they are not here.

    It does not depend on how the model is loaded (dtype, device, bits), nor on where its files lie.
    """
    place = _place(name)
    if place is None:
        return ""
    if place.is_file():
        return f"gguf {open_gguf(place).fingerprint}"
    if (place / ADAPTER).is_file():
        config, base = read_json(place / ADAPTER), weights_of(base_of(place))
        if not base or not (place / ADAPTER_WEIGHTS).is_file():
            return ""
        added = Checkpoint(place, config, (ADAPTER_WEIGHTS,), read_header(place / ADAPTER_WEIGHTS)).fingerprint
        how = json.dumps({key: config[key] for key in config if key not in ("base_model_name_or_path", "revision")}, sort_keys=True)
        return "files " + hashlib.sha256(f"{base} {added} {how}".encode()).hexdigest()[:16]
    return f"files {open_checkpoint(place).fingerprint}"


def files_of(name: str) -> Path | None:
    """The local folder of safetensors behind a MODEL argument, in the Hub's cache too; None where there is none, or a GGUF file."""
    place = _place(name)
    return place if place is not None and place.is_dir() else None


def _place(name: str) -> Path | None:
    """The local folder or GGUF file behind a MODEL argument: the one that it names, or the one in the Hub's cache; None where there is none."""
    try:
        place = resolve(name)
    except ModelError:
        return None
    if Path(place.where).exists():
        return Path(place.where)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(place.where, place.gguf or CONFIG, revision=place.revision)
    except HFValidationError:
        return None
    if not isinstance(cached, str) or place.gguf:
        return Path(cached) if isinstance(cached, str) else None
    folder = Path(cached).parent
    return folder if (folder / SINGLE).is_file() or (folder / INDEX).is_file() else None


def say_which_file(name: str) -> None:
    """Says which weights are read where a folder holds them twice, as one file and as shards."""
    place = resolve(name)
    if place.folder is not None and not place.is_adapter and open_checkpoint(place.folder).doubled:
        warn(f"{name} holds {SINGLE} beside {INDEX} and its shards; {SINGLE} is read, as transformers does, and the shards are not.")


def local_folder(model: str) -> Path:
    """The folder that holds the files of a model which is neither an adapter nor a GGUF file; a Hub model is fetched (safetensors, configuration
    and tokenizer only)."""
    place = resolve(model)
    if place.folder is not None:
        return place.folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.md", "*.py"]
    try:
        return Path(snapshot_download(place.where, revision=place.revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"The model {model!r} could not be fetched: {' '.join(str(error).split())[:200]}") from error
