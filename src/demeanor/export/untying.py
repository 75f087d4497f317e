"""What a model ties and a control changes becomes tensors of its own: the head that is the embedding, and whatever is untied with it.

The configuration has one word for all that a model ties, so a bias of the head or a block that several layers share is untied too.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from ..errors import ModelError
from ..io.checkpoint import CONFIG, INDEX, SINGLE, Checkpoint
from ..io.json_files import write_json
from ..io.kernel_copy import copy_range, write_at
from ..structure.stored_names import StoredNames
from .changes import Change
from .names import FileTensors
from .patch import PutBack
from .shards import edit_alone

APART, RENAMED = "model-untied-head.safetensors", "model-edited.safetensors"
PIECE = 1 << 22  # bytes of two tensors that are compared at a time


def unties(source: Checkpoint, files: FileTensors, edits: Mapping[str, Change]) -> bool:
    """Whether the edits change one of a tied pair, so that the two become one each.

    Files that hold a head already are taken as they are where it is the same as the embedding; one that differs has never been used, so
    nothing is known of it: refused with a ModelError.
    """
    if files.layout.tied is None:
        return False
    embedding, head = files.layout.tied
    key, held = files.key(embedding), files.stored.keys(head)
    packed = {key, *held} & set(files.packed)
    if not {key, head, *held, *(files.packed[name].codes for name in packed)} & set(edits):
        return False
    if packed:
        raise ModelError(f"{source.folder} holds {key} as {files.source.tensors[key].dtype} and ties the head to it; untie the two first.")
    if held and not _same(source, held[0], key):
        raise ModelError(f"{source.folder} holds {head} although its config ties it to {embedding}; remove one of the two, then bake.")
    return True


def untie(source: Checkpoint, files: FileTensors, work: Path) -> dict[str, str]:
    """Write the configuration of a model in which nothing is tied into `work`; returns the tensors that its files lack then, each with the
    tensor of the source that has its values."""
    assert files.layout.tied is not None
    config = json.loads(json.dumps(source.config))
    config["tie_word_embeddings"] = False
    if "tie_word_embeddings" in source.section("text_config"):
        config["text_config"]["tie_word_embeddings"] = False
    (work / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")  # as it was, Infinity too
    head = files.layout.tied[1]
    if isinstance(files.stored, StoredNames):
        lacking = StoredNames(replace(files.source, folder=work)).missing()
    else:
        lacking = [] if files.stored.keys(head) else [head]
    holders = {name: [held for alias in _names(files, name) if (held := files.stored.key(alias))] for name in lacking}
    apart = {name: keys[0] for name, keys in holders.items() if keys}
    few_bits = next((key for key in apart.values() if key in files.packed), None)
    if few_bits is not None:
        raise ModelError(f"{source.folder} ties {few_bits}, which it holds as {files.source.tensors[few_bits].dtype}; untie it first.")
    return apart


def _names(files: FileTensors, name: str) -> tuple[str, ...]:
    """Under which names the files may hold what a parameter was while it was tied."""
    embedding, head = files.layout.tied or (None, None)
    return (*files.stored.aliases(name), embedding) if embedding and name == head else files.stored.aliases(name)


def write_apart(source: Checkpoint, apart: Mapping[str, str], work: Path) -> dict[str, str]:
    """Write tensors of the source under other names into a shard of their own, and an index with it; returns shards that get another name."""
    if not apart:
        return {}
    _copy_tensors(source, apart, work / APART)
    renamed = {SINGLE: RENAMED} if source.shards == (SINGLE,) else {}  # a file of that name would be read alone
    names = {key: renamed.get(place.shard, place.shard) for key, place in source.tensors.items()} | dict.fromkeys(apart, APART)
    write_json(work / INDEX, {"metadata": {"total_size": source.size + bytes_apart(source, apart.values())}, "weight_map": names})
    return renamed


def edit_apart(files: FileTensors, edits: Mapping[str, Change], apart: Mapping[str, str], work: Path) -> tuple[int, dict[str, PutBack]]:
    """Change the tensors that `write_apart` wrote; returns how many that makes beside `edits`, and what rounding did to each. The head has edits of its own, all
    others those of what they were."""
    head = files.layout.tied[1] if files.layout.tied else None
    changed = {name: edits.get(name if name == head else key) for name, key in apart.items()}
    put_back = {name: edit_alone(work / APART, name, change) for name, change in changed.items() if change is not None}
    return sum(name not in edits for name in put_back), put_back


def bytes_apart(source: Checkpoint, keys: Iterable[str]) -> int:
    """What tensors of the source take once more."""
    return sum(source.tensors[key].end - source.tensors[key].start for key in keys)


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


def _copy_tensors(source: Checkpoint, tensors: Mapping[str, str], path: Path) -> None:
    """Tensors of the files (the values) under other names (the keys) in a new safetensors file, without reading them into memory."""
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    places: list[tuple[str, int]] = []
    size = 0
    for name, key in tensors.items():
        stored = source.tensors[key]
        places.append((key, size))
        end = size + stored.end - stored.start
        described[name] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": [size, end]}
        size = end
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        write_at(file.fileno(), struct.pack("<Q", len(text)) + text, 0)
        for key, place in places:
            stored = source.tensors[key]
            with (source.folder / stored.shard).open("rb") as origin:
                copy_range(origin.fileno(), file.fileno(), stored.start, stored.end, 8 + len(text) + place)
