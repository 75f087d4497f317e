"""What a MODEL argument stands for: the embedded model, a folder, a Hub id, or an adapter for one of these; and whether two are the same."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path

from ..errors import ModelError, did_you_mean
from ..io.checkpoint import CONFIG, INDEX, SINGLE, Checkpoint, open_checkpoint, read_header, read_json
from ..io.claims import refuse_output
from ..progress import warn
from ..runtime.adapters import ADAPTER, ADAPTER_WEIGHTS
from ..structure.layout import same_weights

ORGANISM = "organism"


def resolve(name: str) -> tuple[str, str | None]:
    """The folder or Hub id behind a MODEL argument, and its revision; local files are checked at once."""
    if not name.strip():
        raise ModelError("MODEL is empty; name organism, a model folder or a Hub id.")
    if name == ORGANISM:
        return str(resources.files("demeanor") / "organism" / "model"), None
    path = Path(name)
    if _exists(path):
        refuse_output(path)
        if not (path / ADAPTER).is_file():
            open_checkpoint(path)
        return str(path), None
    hub, _, revision = name.partition("@")
    if name.startswith((".", "/", "~")) or hub.count("/") != 1:
        raise ModelError(f"There is no model {name!r}{did_you_mean(name, [ORGANISM])}: not a folder here, and a Hub id has the form owner/model.")
    return hub, revision or None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is longer than names may be
        return False


def is_adapter(name: str) -> bool:
    """Whether MODEL is a folder that holds a PEFT adapter."""
    return (Path(resolve(name)[0]) / ADAPTER).is_file()


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
    if (place / ADAPTER).is_file():
        config, base = read_json(place / ADAPTER), weights_of(base_of(place))
        if not base or not (place / ADAPTER_WEIGHTS).is_file():
            return ""
        added = Checkpoint(place, config, (ADAPTER_WEIGHTS,), read_header(place / ADAPTER_WEIGHTS)).fingerprint
        how = json.dumps({key: config[key] for key in config if key not in ("base_model_name_or_path", "revision")}, sort_keys=True)
        return "files " + hashlib.sha256(f"{base} {added} {how}".encode()).hexdigest()[:16]
    return f"files {open_checkpoint(place).fingerprint}"


def _place(name: str) -> Path | None:
    """The local folder behind a MODEL argument: the one that it names, or the one in the Hub's cache; None where there is none."""
    try:
        place, revision = resolve(name)
    except ModelError:
        return None
    if Path(place).is_dir():
        return Path(place)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(place, CONFIG, revision=revision)
    except HFValidationError:
        return None
    folder = Path(config).parent if isinstance(config, str) else None
    whole = folder is not None and ((folder / SINGLE).is_file() or (folder / INDEX).is_file())
    return folder if whole else None


def say_which_file(name: str, folder: Path) -> None:
    """Says which weights are read where a folder holds them twice, as one file and as shards."""
    if folder.is_dir() and not (folder / ADAPTER).is_file() and open_checkpoint(folder).doubled:
        warn(f"{name} holds {SINGLE} beside {INDEX} and its shards; {SINGLE} is read, as transformers does, and the shards are not.")
