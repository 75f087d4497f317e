"""Writing a control into a model's files, shard by shard, without loading the model. algorithms.md, sections 5 and 6.

Only edited tensors are computed, a block of rows at a time, in float32; all else goes over as the file system does it best and stays
byte for byte the same. What is written equals what the run-time control does. The result is made in a folder beside the target and
renamed when complete; a bake that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..controls import Control
from ..controls.files import digest
from ..errors import ControlError, ModelError
from ..io.atomic import in_one_sentence, new_folder, resumed_folder, work_folder
from ..io.checkpoint import CONFIG, INDEX, SINGLE, Checkpoint, Stored, open_checkpoint
from ..io.claims import claimed
from ..io.json_files import write_json
from ..io.kernel_copy import copy_range, write_at
from ..models.loading import save_whole
from ..models.naming import Place, base_of, resolve, same_model, weights_of
from ..progress import say
from ..runtime.rows import as_control
from ..structure.layout import same_weights
from ..version import __version__
from .card import write_card
from .changes import Change, changes
from .copying import bytes_to_copy, copy_model
from .names import FileTensors
from .patch import PutBack
from .shards import Unusable, Written, bytes_to_write, edit_alone, refuse_full, write_shards

HEAD_SHARD, RENAMED = "model-untied-head.safetensors", "model-edited.safetensors"
PIECE = 1 << 22  # bytes of two tensors that are compared at a time


@dataclass(frozen=True, kw_only=True)
class Baked:
    """What was written: the folder, how many tensors were edited of how many, and which files were left out.

    left: the share of what the edit takes out (or moves) along its directions that rounding put back, 0 to 1, over all tensors; None
    where nothing is rounded. worst: the tensor with most of it, and how much. linked: shards that are other names of the source's own.
    """

    folder: Path
    edited: int
    tensors: int
    untied: bool
    left_out: tuple[str, ...]
    left: float | None = None
    worst: tuple[str, float] | None = None
    linked: int = 0

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.edited} of {self.tensors} tensors edited, the others byte for byte as before."]
        if self.left is not None and self.worst is not None:
            lines.append(f"Left of r after rounding: {self.left:.4%} (most in {self.worst[0]}: {self.worst[1]:.4%}).")
        if self.linked:
            lines.append(
                f"{self.linked} shards without an edited tensor are hard links to the model's own files, and take no room; --copy makes copies."
            )
        if self.untied:
            lines.append(
                "The output head was tied to the embedding and is now a tensor of its own; converters that drop it for this family (GGUF) would undo the edit there."
            )
        if self.left_out:
            lines.append(f"Left out, because they hold unedited weights or are no files: {', '.join(self.left_out)}.")
        return "\n".join(lines)


def bake(model: str | Path, control: Control, out: str | Path, trust_remote_code: bool = False, copy: bool = False) -> Baked:
    """Write `model` with `control` in its weights to the new folder `out`.

    trust_remote_code: run code that comes with a model whose adapter has to be merged first.
    copy: shards without an edited tensor are copied; else they are hard links to the model's own files, where the file system can.
    Raises ControlError when weights cannot do exactly what the control does, or when the control was made
    for another structure; ModelError for damaged files; DataError where the disk is too small. Nothing is left behind on failure.
    A bake that was killed goes on after the last shard that was complete.
    """
    reason = as_control(control).bakeable()
    if reason:
        raise ControlError(f"This control cannot be baked: {reason}.")
    out = Path(out)
    if control.adapters:
        same = same_weights(control.weights, weights_of(str(model)))
        _refuse_other(str(model), control.model_name, "The adapter", same)
    with claimed(out, "folder", replaces=False), in_one_sentence(out), _folder(str(model), out, trust_remote_code) as folder:
        source = open_checkpoint(folder)
        files = FileTensors(source, control)  # refuses what does not fit before anything is copied
        edits = changes(control, files)
        with resumed_folder(out, _key(source, control, copy)) as work:
            refuse_full(work, bytes_to_write(source, edits, work, copy) + bytes_to_copy(source), out)
            left_out = copy_model(source, work)
            names = {shard: shard for shard in source.shards}
            head = _untied_head(source, files, edits)
            if head is not None:
                names |= _untie(source, *head, work)
            written = _written(source, edits, work, names, copy, str(model))
            if head is not None and head[0] in edits and head[0] not in source.tensors:
                edit_alone(work / HEAD_SHARD, head[0], edits[head[0]])
            write_card(source, control, str(model), work)
    return Baked(
        folder=out, edited=len(edits), tensors=len(source.tensors) + (head is not None and head[0] not in source.tensors),
        untied=head is not None, left_out=left_out, linked=written.links, **_left(written),
    )  # fmt: skip


def _key(source: Checkpoint, control: Control, copy: bool) -> str:
    """What a bake writes: from which files, by which control, how."""
    shards = [(shard, stat.st_size, stat.st_mtime_ns) for shard in source.shards for stat in [(source.folder / shard).stat()]]
    told = [__version__, str(source.folder.resolve()), shards, source.fingerprint, digest(control), copy]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _written(source: Checkpoint, edits: Mapping[str, Change], work: Path, names: Mapping[str, str], copy: bool, model: str) -> Written:
    """All shards; an error tells which tensor of the model `model` holds what is no number."""
    try:
        return write_shards(source, edits, work, names, copy)
    except Unusable as error:
        if error.in_source:
            raise ModelError(f"The model {model} holds values that are not finite in {error.key}; download it again.") from error
        raise ControlError(
            f"The edit makes values in {error.key} that are too large for its dtype ({source.tensors[error.key].dtype}), so nothing was written; use a smaller dose, or a copy of the model in a wider dtype."
        ) from error


def _left(written: Written) -> dict[str, Any]:
    """What rounding put back, over all tensors and where most of it is."""
    left = sum(written.put_back.values(), PutBack()).share
    shares = {key: share for key, one in written.put_back.items() if (share := one.share) is not None}
    return {"left": left, "worst": max(shares.items(), key=lambda item: item[1])} if shares else {}


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


def _untied_head(source: Checkpoint, files: FileTensors, edits: Mapping[str, Change]) -> tuple[str, str] | None:
    """The head and the embedding (its tensor in the files) that become two where the edits change one of a tied pair.

    The head then has the unedited embedding's values. Files that hold a head already are taken as they are where it is the same as the
    embedding; one that differs has never been used, so nothing is known of it: refused.
    """
    if files.layout.tied is None:
        return None
    embedding, head = files.layout.tied
    key, held = files.key(embedding), files.stored.keys(head)
    packed = {key, *held} & set(files.packed)
    if not {key, head, *held, *(files.packed[name].codes for name in packed)} & set(edits):
        return None
    if packed:
        raise ModelError(f"{source.folder} holds {key} as {files.source.tensors[key].dtype} and ties the head to it; untie the two first.")
    if held and not _same(source, held[0], key):
        raise ModelError(f"{source.folder} holds {head} although its config ties it to {embedding}; remove one of the two, then bake.")
    return (held[0] if held else head), key


def _same(source: Checkpoint, one: str, other: str) -> bool:
    """Whether two tensors of the files hold the same, read a piece at a time."""
    first, second = source.tensors[one], source.tensors[other]
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    with (source.folder / first.shard).open("rb") as a, (source.folder / second.shard).open("rb") as b:
        a.seek(first.start)
        b.seek(second.start)
        sizes = [min(PIECE, first.end - place) for place in range(first.start, first.end, PIECE)]
        return all(a.read(size) == b.read(size) for size in sizes)


def _untie(source: Checkpoint, head: str, embedding: str, work: Path) -> dict[str, str]:
    """Write the configuration of a model whose head is a tensor of its own, and the head where the files lack it; returns shards that get another name."""
    config = json.loads(json.dumps(source.config))
    config["tie_word_embeddings"] = False
    if "tie_word_embeddings" in source.section("text_config"):
        config["text_config"]["tie_word_embeddings"] = False
    (work / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")  # as it was, Infinity too
    if head in source.tensors:
        return {}
    stored = source.tensors[embedding]
    _copy_alone(source, stored, head, work / HEAD_SHARD)
    renamed = {SINGLE: RENAMED} if source.shards == (SINGLE,) else {}  # a file of that name would be read alone
    names = {key: renamed.get(place.shard, place.shard) for key, place in source.tensors.items()} | {head: HEAD_SHARD}
    write_json(work / INDEX, {"metadata": {"total_size": source.size + stored.end - stored.start}, "weight_map": names})
    return renamed


def _copy_alone(source: Checkpoint, stored: Stored, name: str, path: Path) -> None:
    """One tensor of the files under another name in a safetensors file of its own, without reading it into memory."""
    described = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": [0, stored.end - stored.start]}
    text = json.dumps({"__metadata__": {"format": "pt"}, name: described}).encode()
    text += b" " * (-len(text) % 8)
    with (source.folder / stored.shard).open("rb") as origin, path.open("wb") as file:
        write_at(file.fileno(), struct.pack("<Q", len(text)) + text, 0)
        copy_range(origin.fileno(), file.fileno(), stored.start, stored.end, 8 + len(text))
