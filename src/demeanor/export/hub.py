"""Putting what was made on the Hub: a control, an adapter or an edited model, with a card that says what it does and what it kept.

Nothing goes that names a folder of this machine: of a path only the last part is sent.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ..controls import Control, load_control, save_control
from ..controls.files import CONTROL
from ..errors import DataError
from ..io.checkpoint import CONFIG
from ..io.hub import hub_name, told
from ..io.plan import PLAN
from ..progress import say
from ..runtime.adapter import ADAPTER
from .card import note
from .measured import SCORES, measured

CARD = "README.md"
BASE = "base_model"
TAGS = ["demeanor"]
MADE = "with demeanor"  # in every card of ours
STAYS = (PLAN, "training.json", "runs")  # of a training's folder: where its data lay, and the logs of trackers
PATHS = re.compile(r"""(?<![\w/:.])(?:~|[A-Za-z]:)?[/\\](?:[^\s`"',/\\]+[/\\]+)+([^\s`"',/\\]+)""")  # that begin at a root


@dataclass(frozen=True)
class Pushed:
    """What lies on the Hub now, who sees it, and what of the folder was left here."""

    repo: str
    url: str
    private: bool
    files: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        left = "" if not self.left_out else f" {len(self.left_out)} were left here ({', '.join(self.left_out)})."
        return f"{self.url} ({'private' if self.private else 'public'}): {len(self.files)} files ({', '.join(self.files)}).{left}"


def push(place: str | Path, repo: str, *, public: bool = False, revision: str | None = None) -> Pushed:
    """Put a control file, or the folder of a run, a training, an export or a bake, into the repository `owner/name` of the Hub.

    A repository that is not there yet is made, private unless `public`; one that is there stays as it is. Of a run its control and its
    figures go; replies, reports and plans stay here. The card says base, what was changed, the figures and the guard. All files come in
    one commit; files that arrived before it was broken off are not sent again. Raises DataError for what is no such thing, or when the Hub
    refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    name = hub_name(repo)
    if name is None or name.revision is not None:
        raise DataError(f"{repo!r} is no repository of the Hub; give it as owner/name (and a branch as revision).")
    parcel = _parcel(Path(place), repo)
    with told(f"{place} could not be pushed to {repo}", "; the same command goes on where it was"):
        api = HfApi()
        api.create_repo(repo, private=not public, exist_ok=True)
        private = bool(api.repo_info(repo).private)
        say(f"Sending {len(parcel.files)} files to {repo}, which is {'private' if private else 'public'}.")
        operations = [CommitOperationAdd(where, content) for where, content in parcel.files.items()]
        commit = api.create_commit(repo, operations, commit_message=f"{parcel.what}, made with demeanor", revision=revision)
    return Pushed(repo, str(commit.commit_url).partition("/commit/")[0], private, tuple(parcel.files), parcel.left_out)


@dataclass(frozen=True)
class _Parcel:
    """What is sent: contents, or paths of files, by their names there."""

    what: str
    files: dict[str, str | bytes]
    left_out: tuple[str, ...]


def _parcel(place: Path, repo: str) -> _Parcel:
    if place.is_dir() and ((place / CONFIG).is_file() or (place / ADAPTER).is_file()):
        return _whole(place)
    if not place.exists():
        raise DataError(f"There is no {place}; name a control file, or the folder of a run, a training, an export or a bake.")
    return _of_control(place, repo)


def _whole(folder: Path) -> _Parcel:
    """A model or an adapter, whose folder is what others load; with its own card, which must be one of ours."""
    card = (folder / CARD).read_text(encoding="utf-8", errors="replace") if (folder / CARD).is_file() else ""
    if MADE not in card:
        raise DataError(f"{folder} has no card that says how it was edited ({CARD}), so it was not made with demeanor; upload it with `hf upload`.")
    what = "An edited model" if (folder / CONFIG).is_file() else "An adapter"
    sent: dict[str, str | bytes] = {name: str(path) for path in _files(folder) if (name := path.relative_to(folder).as_posix()).partition("/")[0] not in STAYS}
    if ADAPTER in sent:
        sent[ADAPTER] = without_places((folder / ADAPTER).read_text(encoding="utf-8")).encode()
    if CONTROL in sent:
        sent[CONTROL] = _placeless(load_control(folder / CONTROL))
    return _Parcel(what, sent | {CARD: _with_data(card, "")}, tuple(name for name in STAYS if (folder / name).exists()))


def _of_control(place: Path, repo: str) -> _Parcel:
    """A control by itself or out of a run's or training's folder, with the figures of a run."""
    control = load_control(place)
    model, file = without_places(control.model_name), place / CONTROL if place.is_dir() else place
    sent: dict[str, str | bytes] = {CONTROL: _placeless(control)}
    figures = "".join(f"> {sentence}\n" for sentence in measured(place))
    if figures:
        sent[SCORES] = without_places((file.parent / SCORES).read_text(encoding="utf-8")).encode()
    told_of = f">\n> Measured on prompts that had no part in it:\n>\n{figures}" if figures else ">\n> What it does, and what it keeps, was not measured by a run.\n"
    use = f'\n    demeanor chat {model} "..." --control {repo}\n'
    card = _with_data(f"---\ntags: {TAGS}\n---\n\n{note(control, model, what='control')}{told_of}{use}", model)
    left = tuple(sorted(path.name for path in place.iterdir() if path.name not in sent and not path.name.startswith("."))) if place.is_dir() else ()
    return _Parcel("A control", sent | {CARD: card}, left)


def _placeless(control: Control) -> bytes:
    """A control's file that names no folder of this machine in its header."""
    made_from = json.loads(without_places(json.dumps(dict(control.made_from), ensure_ascii=False)))
    with tempfile.TemporaryDirectory() as folder:
        save_control(replace(control, model_name=without_places(control.model_name), made_from=made_from), Path(folder) / CONTROL)
        return (Path(folder) / CONTROL).read_bytes()


def without_places(text: str) -> str:
    """A text with the last part alone of every path that begins at a root, here or on another machine; addresses of the web stay."""
    return PATHS.sub(r"\1", text)


def _files(folder: Path) -> Iterator[Path]:
    """What belongs to a folder: nothing hidden, which is never part of a result."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _with_data(text: str, base: str) -> bytes:
    """A card with the data that the Hub reads: the base where that is a name there, and whose tool it was; what it says already stays."""
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(without_places(text), ignore_metadata_errors=True)
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"The card ({CARD}) begins with data that is no YAML ({' '.join(str(error).split())[:100]}); correct it.") from error
    data: Any = card.data
    told_base = str(data.get(BASE) or base)
    if hub_name(told_base) is None or Path(told_base).exists():
        data.pop(BASE, None)  # the Hub takes names of its own alone
    elif not data.get(BASE):
        data[BASE] = base
    data["tags"] = list(dict.fromkeys([*(data.get("tags") or ()), *TAGS]))
    return str(card).encode()
