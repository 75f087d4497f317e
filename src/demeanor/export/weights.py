"""Writing a control into a model's files, shard by shard, without loading the model. algorithms.md, sections 5 and 6.

Every shard is copied, then only the bytes of edited tensors are patched in place, a block of rows at a
time, in float32. What is written equals what the run-time control does; tensors that are not edited stay
byte for byte the same. The result is made in a folder beside the target and renamed when complete.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..algebra.edits import Edit
from ..controls import Control, Part
from ..errors import ControlError, ModelError
from ..io.atomic import new_folder, work_folder
from ..io.checkpoint import DTYPES, INDEX, SINGLE, Checkpoint, open_checkpoint
from ..io.json_files import write_json
from ..models.loading import base_of, is_adapter, resolve, save_merged
from ..progress import track
from ..runtime.rows import as_control
from ..structure.layout import writer_edits
from .card import write_card
from .names import FileTensors
from .patch import add_low_rank, edit_in_place, element_count

OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".onnx", ".msgpack", ".h5")


@dataclass(frozen=True, kw_only=True)
class Baked:
    """What was written: the folder, how many tensors were edited of how many, and which files were left out."""

    folder: Path
    edited: int
    tensors: int
    untied: bool
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.edited} of {self.tensors} tensors edited, the others byte for byte as before."]
        if self.untied:
            lines.append(
                "The output head was tied to the embedding and is now a tensor of its own; converters that drop it for this family (GGUF) would undo the edit there."
            )
        if self.left_out:
            lines.append(f"Left out, because they hold the unedited weights in other formats: {', '.join(self.left_out)}.")
        return "\n".join(lines)


def bake(model: str | Path, control: Control, out: str | Path, trust_remote_code: bool = False) -> Baked:
    """Write `model` with `control` in its weights to the new folder `out`.

    trust_remote_code: run code that comes with a model whose adapter has to be merged first.
    Raises ControlError when weights cannot do exactly what the control does, or when the control was made
    for another structure; ModelError for damaged files. Nothing is left behind on failure.
    """
    reason = as_control(control).bakeable()
    if reason:
        raise ControlError(f"This control cannot be baked: {reason}.")
    out = Path(out)
    if control.adapters:
        _refuse_other(str(model), control.model_name, "The adapter")
    with new_folder(out) as work, _folder(str(model), out, trust_remote_code) as folder:
        source = open_checkpoint(folder)
        files = FileTensors(source, control)
        left_out = _copy(source, work)
        untied = _untie(source, files, work) if control.layout.tied and control.parts else False
        edited = _patch(source, files, control, work)
        write_card(source, control, str(model), work)
    return Baked(folder=out, edited=edited, tensors=len(source.tensors) + untied, untied=untied, left_out=left_out)


def merge(model: str | Path, adapter: str | Path, out: str | Path, trust_remote_code: bool = False) -> Path:
    """Write an adapter into the weights of the model it was made for, as the new folder `out`.

    Raises ControlError when it was made for another model, ModelError when it cannot be merged.
    """
    base, out = base_of(Path(adapter)), Path(out)
    _refuse_other(str(model), base, f"The adapter {adapter}")
    with new_folder(out) as work:
        save_merged(str(adapter), work, trust_remote_code)
        card = Path(adapter) / "README.md"
        if card.is_file():
            shutil.copyfile(card, work / card.name)
    return out


def _refuse_other(model: str, base: str, what: str) -> None:
    """Raises ControlError where an adapter would be added to other weights than those it was trained beside."""
    if model != base and resolve(model) != resolve(base):
        raise ControlError(f"{what} was made for {base}, and this is {model}; name the model it was made for.")


@contextmanager
def _folder(model: str, out: Path, trust_remote_code: bool) -> Iterator[Path]:
    """The local folder of a model. A Hub model is fetched (safetensors, configuration and tokenizer only); an adapter is
    merged into its model, in a folder beside `out` that is gone afterwards."""
    if is_adapter(model):
        with work_folder(out) as merged:
            save_merged(model, merged, trust_remote_code)
            yield merged
        return
    place, revision = resolve(model)
    yield Path(place) if Path(place).is_dir() else _fetched(model, place, revision)


def _fetched(model: str, place: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.md", "*.py"]
    try:
        return Path(snapshot_download(place, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"The model {model!r} could not be fetched: {' '.join(str(error).split())[:200]}") from error


def _copy(source: Checkpoint, work: Path) -> tuple[str, ...]:
    """Everything but weights in other formats; returns what was left out."""
    left_out = []
    for path in track(sorted(source.folder.iterdir()), "Copying", sum(1 for _ in source.folder.iterdir())):
        if path.suffix in OTHER_WEIGHTS or (path.suffix == ".safetensors" and path.name not in source.shards):
            left_out.append(path.name)
        elif path.is_file() and not path.name.startswith("."):
            shutil.copyfile(path, work / path.name)  # in the kernel
    return tuple(left_out)


def _untie(source: Checkpoint, files: FileTensors, work: Path) -> bool:
    """Give the output head a tensor of its own, from the unedited embedding, in one extra shard.

    A head that lies in the files beside a tied embedding has never been used, so nothing is known of it: refused.
    """
    assert files.layout.tied is not None
    embedding, head = files.layout.tied
    if files.stored.keys(head):
        raise ModelError(f"{source.folder} holds {head} although its config ties it to {embedding}; remove one of the two, then bake.")
    stored = files.find(embedding)
    with (source.folder / stored.shard).open("rb") as file:
        file.seek(stored.start)
        raw = bytearray(file.read(stored.end - stored.start))
    tensor = torch.frombuffer(raw, dtype=DTYPES[stored.dtype]).reshape(stored.shape)
    extra = "model-untied-head.safetensors"
    save_file({head: tensor}, work / extra, {"format": "pt"})
    shards = {shard: shard for shard in source.shards}
    if source.shards == (SINGLE,):  # a file of that name would be read alone
        shards = {SINGLE: "model-edited.safetensors"}
        os.rename(work / SINGLE, work / shards[SINGLE])
    names = {key: shards[place.shard] for key, place in source.tensors.items()} | {head: extra}
    size = source.size + stored.end - stored.start
    write_json(work / INDEX, {"metadata": {"total_size": size}, "weight_map": names})
    _set_untied(source, work)
    return True


def _set_untied(source: Checkpoint, work: Path) -> None:
    config = json.loads(json.dumps(source.config))
    config["tie_word_embeddings"] = False
    if "tie_word_embeddings" in config.get("text_config", {}):
        config["text_config"]["tie_word_embeddings"] = False
    (work / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")  # as it was, Infinity too


def _patch(source: Checkpoint, files: FileTensors, control: Control, work: Path) -> int:
    """Change the tensors behind adapters, then those behind every writer, in the copy; returns how many."""
    jobs: list[tuple[str, Callable[[Tensor], None]]] = [
        (files.linear(name, len(b), a.shape[1], adapter.transposed), partial(add_low_rank, adapter=adapter, name=name))
        for adapter in control.adapters
        for name, (a, b) in adapter.low_rank.items()
    ]
    jobs += [
        (piece.key, _editing(piece.axis, edit))
        for part in control.parts
        for name, axis, edit in _edits(part, files)
        for piece in files.of(name, axis)
    ]
    for key, change in track(jobs, "Editing", len(jobs)):
        stored = source.tensors[key]
        shard = work / stored.shard
        if not shard.exists():
            shard = work / "model-edited.safetensors"
        with shard.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            whole = torch.frombuffer(view, dtype=DTYPES[stored.dtype], count=element_count(stored), offset=stored.start)
            change(whole.view(stored.shape))
            del whole  # the map cannot be closed while a tensor looks into it
            view.flush()
    return len({key for key, _ in jobs})


def _editing(axis: int, edit: Edit) -> Callable[[Tensor], None]:
    return lambda tensor: edit_in_place(tensor, axis, edit)


def _edits(part: Part, files: FileTensors) -> Iterator[tuple[str, int, Edit]]:
    for writer in files.layout.writers:
        edit = part.at_writer(writer, files.layout)
        if edit is not None:
            yield from writer_edits(writer, edit, files.read)
