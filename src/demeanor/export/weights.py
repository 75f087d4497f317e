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
from ..io.checkpoint import CONFIG, DTYPES, INDEX, SINGLE, Checkpoint, open_checkpoint
from ..io.json_files import write_json
from ..models import Loading
from ..models.loading import save_whole
from ..models.naming import Place, base_of, resolve, same_model, weights_of
from ..progress import say, track
from ..runtime.rows import as_control
from ..structure.layout import same_weights, writer_edits
from ..structure.stored_names import StoredNames
from .card import write_card
from .copying import copy_model
from .names import EDITABLE, FileTensors
from .patch import BLOCK_BYTES, NotFinite, add_low_rank, edit_in_place, element_count
from .verify import Verified, has_room
from .verify import verify as compared


@dataclass(frozen=True, kw_only=True)
class Baked:
    """What was written: the folder, how many tensors were edited of how many, and which files were left out."""

    folder: Path
    edited: int
    tensors: int
    untied: bool
    left_out: tuple[str, ...]
    verified: Verified | None = None
    unused: tuple[str, ...] = ()  # tensors that are no part of the model as it is loaded

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.edited} of {self.tensors} tensors edited, the others byte for byte as before."]
        if self.untied:
            lines.append(
                "The output head was tied to the embedding and is now a tensor of its own; converters that drop it for this family (GGUF) would undo the edit there."
            )
        if self.unused:
            lines.append(
                f"{len(self.unused)} tensors ({self.unused[0]} first) are no part of the model as it is loaded (heads for drafts or several tokens at once, say) and stay as they were: what reads them does without the edit."
            )
        if self.verified is not None:
            lines.append(str(self.verified))
        if self.left_out:
            lines.append(f"Left out, because they hold unedited weights or are no files: {', '.join(self.left_out)}.")
        return "\n".join(lines)


def bake(
    model: str | Path, control: Control, out: str | Path, trust_remote_code: bool = False, verify: Loading | None = None
) -> Baked:
    """Write `model` with `control` in its weights to the new folder `out`.

    trust_remote_code: run code that comes with a model whose adapter has to be merged first.
    verify: how what is written is loaded, to be compared with the control at run time where memory allows (CheckFailed where it is another).
    Raises ControlError when weights cannot do exactly what the control does, or when the control was made
    for another structure; ModelError for damaged files. Nothing is left behind on failure.
    """
    reason = as_control(control).bakeable()
    if reason:
        raise ControlError(f"This control cannot be baked: {reason}.")
    out = Path(out)
    if control.adapters:
        same = same_weights(control.weights, weights_of(str(model)))
        _refuse_other(str(model), control.model_name, "The adapter", same)
    with new_folder(out) as work, _folder(str(model), out, trust_remote_code) as folder:
        source = open_checkpoint(folder)
        files = FileTensors(source, control)  # refuses what does not fit before anything is copied
        left_out = copy_model(source, work)
        untied = _untie(source, control, work)
        copy = open_checkpoint(work)
        edited = _patch(FileTensors(copy, control, files.stored), control, model)
        _refuse_incomplete(StoredNames(copy), str(model))
        write_card(source, control, str(model), work)
        verified = None if verify is None or not has_room(copy) else compared(str(model), control, work, verify)
    return Baked(folder=out, edited=edited, tensors=len(copy.tensors), untied=untied, left_out=left_out, verified=verified, unused=tuple(files.stored.unused()))


def merge(model: str | Path, adapter: str | Path, out: str | Path, trust_remote_code: bool = False) -> Path:
    """Write an adapter into the weights of the model it was made for, as the new folder `out`.

    Raises ControlError when it was made for another model, ModelError when it cannot be merged.
    """
    base, out = base_of(Path(adapter)), Path(out)
    _refuse_other(str(model), base, f"The adapter {adapter}", same=None)
    with new_folder(out) as work:
        save_whole(str(adapter), work, trust_remote_code)
        card = Path(adapter) / "README.md"
        if card.is_file():
            shutil.copyfile(card, work / card.name)
    return out


def _refuse_other(model: str, base: str, what: str, same: bool | None) -> None:
    """Raises ControlError where an adapter would be added to other weights than those it was trained beside; `same` says whether they
    are those, None where that is told by the names of both alone."""
    if not (same_model(model, base) if same is None else same):
        raise ControlError(f"{what} was made for {base}, and this is {model}; name the model it was made for.")


@contextmanager
def _folder(model: str, out: Path, trust_remote_code: bool) -> Iterator[Path]:
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


def _untie(source: Checkpoint, control: Control, work: Path) -> bool:
    """Make the copy's head and embedding two tensors where the control changes one of a tied pair; returns whether it did.

    The head then has the unedited embedding's values. Files that hold a head already are taken as they are where it is the same as the
    embedding; one that differs has never been used, so nothing is known of it: refused. The configuration has one word for all that a
    model ties, so whatever else was tied (a bias of the head, a block that several layers share) becomes tensors of its own too.
    """
    if control.layout.tied is None or not _changes_tied(control):
        return False
    embedding, head = control.layout.tied
    files = FileTensors(source, control)
    key, heads = files.key(embedding), files.stored.keys(head)
    if heads and not (source.tensors[heads[0]].dtype == source.tensors[key].dtype and torch.equal(source.read(heads[0]), source.read(key))):
        raise ModelError(f"{source.folder} holds {head} although its config ties it to {embedding}; remove one of the two, then bake.")
    config = json.loads(json.dumps(source.config))
    config["tie_word_embeddings"] = False
    if "tie_word_embeddings" in source.section("text_config"):
        config["text_config"]["tie_word_embeddings"] = False
    (work / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")  # as it was, Infinity too
    lacking = StoredNames(open_checkpoint(work)).missing()
    holders = {name: [held for alias in files.stored.aliases(name) if (held := files.stored.key(alias))] for name in lacking}
    extra = {name: source.read(keys[0]) for name, keys in holders.items() if keys}
    if extra:
        _add_shard(source, extra, work)
    return True


def _changes_tied(control: Control) -> bool:
    """Whether a control changes an embedding, or a head, that is tied to the other."""
    tied, layout = control.layout.tied or (), control.layout
    writers = [writer for writer in layout.writers if any(weight.name in tied for weight in writer.weights)]
    edited = any(part.at_writer(writer, layout) is not None for part in control.parts for writer in writers)
    return edited or any(f"{module}.weight" in tied for adapter in control.adapters for module in adapter.low_rank)


def _add_shard(source: Checkpoint, tensors: dict[str, Tensor], work: Path) -> None:
    """Put more tensors into the copy, in a shard of their own."""
    extra = "model-untied-head.safetensors"
    save_file(tensors, work / extra, {"format": "pt"})
    shards = {shard: shard for shard in source.shards}
    if source.shards == (SINGLE,):  # a file of that name would be read alone
        shards = {SINGLE: "model-edited.safetensors"}
        os.rename(work / SINGLE, work / shards[SINGLE])
    names = {key: shards[place.shard] for key, place in source.tensors.items()} | dict.fromkeys(tensors, extra)
    size = source.size + sum(tensor.nbytes for tensor in tensors.values())
    write_json(work / INDEX, {"metadata": {"total_size": size}, "weight_map": names})


def _refuse_incomplete(written: StoredNames, name: str) -> None:
    """ModelError where the model that is written would be loaded with a parameter that none of its files holds, and so at random."""
    missing = written.missing()
    if missing:
        raise ModelError(
            f"What would be written of {name} holds no tensor for {len(missing)} parameters ({missing[0]} first), which would be made up when it is loaded, so nothing was written; download the model again, or use the control at run time."
        )


def _patch(files: FileTensors, control: Control, name: str | Path) -> int:
    """Change the tensors behind adapters, then those behind every writer, in the copy; returns how many.

    Raises an error with the tensor's name where a value is infinite or no number, in the model `name` or once it is edited.
    """
    copy = files.source
    jobs: list[tuple[str, Callable[[Tensor], None]]] = [
        (files.linear(module, len(b), a.shape[1], adapter.transposed), partial(add_low_rank, adapter=adapter, name=module))
        for adapter in control.adapters
        for module, (a, b) in adapter.low_rank.items()
    ]
    jobs += [
        (piece.key, _editing(piece.axis, edit))
        for part in control.parts
        for parameter, axis, edit in _edits(part, files)
        for piece in files.of(parameter, axis)
    ]
    for key, change in track(jobs, "Editing", len(jobs)):
        try:
            with _in_place(copy, key) as tensor:
                change(tensor)
        except NotFinite as error:
            dtype = copy.tensors[key].dtype
            if error.in_source:
                raise ModelError(f"The model {name} holds values that are not finite in {key}; download it again.") from error
            raise ControlError(
                f"The edit makes values in {key} that are too large for its dtype ({dtype}), so nothing was written; use a smaller dose, or a copy of the model in a wider dtype."
            ) from error
    edited = {key for key, _ in jobs}
    _refuse_no_numbers(copy, edited, name)
    return len(edited)


def _refuse_no_numbers(copy: Checkpoint, edited: set[str], name: str | Path) -> None:
    """ModelError where a tensor that was not edited holds what is no number: no model can be run with it."""
    rest = [key for key, stored in copy.tensors.items() if key not in edited and stored.dtype in EDITABLE]
    for key in track(rest, "Checking", len(rest)):
        with _in_place(copy, key) as tensor:
            damaged = any(bool(block.isnan().any()) for block in tensor.flatten().split(BLOCK_BYTES))
        if damaged:
            raise ModelError(f"The model {name} holds values that are no numbers in {key}; download it again.")


@contextmanager
def _in_place(copy: Checkpoint, key: str) -> Iterator[Tensor]:
    """A tensor of the files; what is written to it is written to its file."""
    stored = copy.tensors[key]
    if stored.start == stored.end:
        yield torch.empty(stored.shape, dtype=DTYPES[stored.dtype])
        return
    with (copy.folder / stored.shard).open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        held = [torch.frombuffer(view, dtype=DTYPES[stored.dtype], count=element_count(stored), offset=stored.start).view(stored.shape)]
        try:
            yield held[0]
        finally:
            held.clear()
        view.flush()


def _editing(axis: int, edit: Edit) -> Callable[[Tensor], None]:
    return lambda tensor: edit_in_place(tensor, axis, edit)


def _edits(part: Part, files: FileTensors) -> Iterator[tuple[str, int, Edit]]:
    for writer in files.layout.writers:
        edit = part.at_writer(writer, files.layout)
        if edit is not None:
            yield from writer_edits(writer, edit, files.read)
