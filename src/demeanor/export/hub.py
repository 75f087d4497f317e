"""Putting what was made on the Hub: a control, an adapter or an edited model, with a card that says what it does and what it kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..controls import load_control
from ..controls.files import CONTROL
from ..errors import DataError
from ..io.checkpoint import CONFIG, read_json
from ..io.hub import hub_name, told
from ..progress import say
from ..runtime.adapters import ADAPTER
from .card import note
from .measured import SCORES, measured

CARD = "README.md"
BASE = "base_model"
TAGS = ["demeanor"]


@dataclass(frozen=True)
class Pushed:
    """What lies on the Hub now, and what of the folder was left here."""

    repo: str
    url: str
    files: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        left = "" if not self.left_out else f" {len(self.left_out)} were left here ({', '.join(self.left_out)})."
        return f"{self.url}: {len(self.files)} files ({', '.join(self.files)}).{left}"


def push(place: str | Path, repo: str, *, public: bool = False, revision: str | None = None) -> Pushed:
    """Put a control file, or the folder of a run, a training, an export or a bake, into the repository `owner/name` of the Hub.

    A repository that is not there yet is made, private unless `public`. Of a run its control and its figures go, and neither replies nor
    what names places of this machine; the card says base, what was changed, the figures and the guard. All files come in one commit; of one
    that was broken off, files that had arrived are not sent again. Raises DataError for what is no such thing, or when the Hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    name = hub_name(repo)
    if name is None or name.revision is not None:
        raise DataError(f"{repo!r} is no repository of the Hub; give it as owner/name (and a branch as revision).")
    parcel = _parcel(Path(place))
    with told(f"{place} could not be pushed to {repo}", "; the same command goes on where it was"):
        api = HfApi()
        api.create_repo(repo, private=not public, exist_ok=True)
        say(f"Sending {len(parcel.files)} files to {repo}.")
        operations = [CommitOperationAdd(where, content) for where, content in parcel.files.items()]
        commit = api.create_commit(repo, operations, commit_message=f"{parcel.what}, made with demeanor", revision=revision)
    return Pushed(repo, str(commit.commit_url).partition("/commit/")[0], tuple(parcel.files), parcel.left_out)


@dataclass(frozen=True)
class _Parcel:
    """What is sent: contents, or paths of files, by their names there."""

    what: str
    files: dict[str, str | bytes]
    left_out: tuple[str, ...]


def _parcel(place: Path) -> _Parcel:
    if place.is_dir() and ((place / CONFIG).is_file() or (place / ADAPTER).is_file()):
        return _whole(place)
    if not place.exists():
        raise DataError(f"There is no {place}; name a control file, or the folder of a run, a training, an export or a bake.")
    return _of_control(place)


def _whole(folder: Path) -> _Parcel:
    """A model or an adapter, whose folder is what others load; with its own card, which must be one of ours."""
    card = (folder / CARD).read_text(encoding="utf-8", errors="replace") if (folder / CARD).is_file() else ""
    if "demeanor" not in card:
        raise DataError(f"{folder} has no card that says how it was edited ({CARD}), so it was not made with demeanor; upload it with `hf upload`.")
    what = "An edited model" if (folder / CONFIG).is_file() else "An adapter"
    base = str(read_json(folder / ADAPTER).get("base_model_name_or_path") or "") if (folder / ADAPTER).is_file() else ""
    kept = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    sent: dict[str, str | bytes] = {name: str(path) for name, path in kept.items()}
    return _Parcel(what, sent | {CARD: _with_data(card, base)}, ())


def _of_control(place: Path) -> _Parcel:
    """A control by itself or out of a run's or training's folder, with the figures of a run."""
    control = load_control(place)
    file = place / CONTROL if place.is_dir() else place
    sent: dict[str, str | bytes] = {CONTROL: str(file)}
    figures = "".join(f"> {sentence}\n" for sentence in measured(place))
    if figures:
        sent[SCORES] = str(file.parent / SCORES)
    told_of = f">\n> Measured on prompts that had no part in it:\n>\n{figures}" if figures else ">\n> What it does, and what it keeps, was not measured by a run.\n"
    model = Path(control.model_name).name if Path(control.model_name).is_absolute() else control.model_name  # where it lies here is nobody's business
    use = f"\n    demeanor chat {model} \"...\" --control OWNER/NAME\n"
    card = _with_data(f"{note(control, model, what='control')}{told_of}{use}", model)
    left = tuple(sorted(path.name for path in place.iterdir() if path.name not in sent and not path.name.startswith("."))) if place.is_dir() else ()
    return _Parcel("A control", sent | {CARD: card}, left)


def _files(folder: Path) -> Iterator[Path]:
    """What belongs to a folder: nothing hidden, which is never part of a result."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _with_data(text: str, base: str) -> bytes:
    """A card with the data that the Hub reads: the base where that is a name there, and whose tool it was; what it says already stays."""
    from huggingface_hub import ModelCard

    card = ModelCard(text, ignore_metadata_errors=True)
    data: Any = card.data
    if not data.get(BASE) and not Path(base).exists() and hub_name(base) is not None:
        data[BASE] = base
    data["tags"] = list(dict.fromkeys([*(data.get("tags") or ()), *TAGS]))
    return str(card).encode()
