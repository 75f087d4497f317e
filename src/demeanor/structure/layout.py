"""What is known about one model: its blocks, and everything that writes to its residual stream.

A Layout is made by `proof.prove` and by nothing else; it can be saved with a control, so that files can be
edited without loading a model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from ..algebra.edits import Edit
from ..algebra.norms import edit_before_norm
from ..arrays import Array, cast_like, library
from ..errors import ControlError

Role = Literal["embed", "attn", "mlp"]


@dataclass(frozen=True)
class Weight:
    """A tensor behind a writer; `axis` is the one that is d_model."""

    name: str
    axis: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class PostNorm:
    """A norm between a writer and the stream: gain = `weight` + `offset` (or `offset` alone)."""

    module: str
    weight: str | None
    offset: float
    bias: str | None
    centred: bool


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A module whose raw output is added to the stream, times `scale`, after `post_norm` if there is one."""

    module: str
    layer: int  # -1 for embeddings
    role: Role
    scale: float
    weights: tuple[Weight, ...]
    post_norm: PostNorm | None = None

    @property
    def contribution(self) -> str:
        """The module whose output, times `scale`, is what the stream receives."""
        return self.post_norm.module if self.post_norm else self.module


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The proven structure of one model; `hash` covers structure, not weights.

    worst_residual: what the sum of a block's parts leaves unexplained at most, relative to what the block adds.
    weights: what tells the weights that it was proven on from others (see `same_weights`); empty where that is not known.
    alphas: what each block multiplies the stream with before it adds to it, None where its parts do not come in as a sum; empty where
    all are 1. skipped: blocks that text does not come by. copies: of the stream, that blocks hand on side by side.
    even_rows: whether it computes something else for a row that is padded, so that rows of one length alone go together.
    one_name_each: whether no parameter but the tied one has several names, so that files may be read without asking the framework.
    """

    model_type: str
    d_model: int
    blocks: tuple[str, ...]
    writers: tuple[Writer, ...]
    tied: tuple[str, str] | None  # (embedding weight, output head weight)
    worst_residual: float = field(default=0.0, compare=False)
    weights: str = field(default="", compare=False)
    alphas: tuple[float | None, ...] = field(default=(), compare=False)
    skipped: tuple[str, ...] = ()
    copies: int = 1
    even_rows: bool = field(default=False, compare=False)
    one_name_each: bool = field(default=False, compare=False)

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @cached_property
    def hash(self) -> str:
        structure = self.to_json()
        for name in ("worst_residual", "weights", "alphas", "even_rows", "one_name_each"):
            del structure[name]
        for name, usual in (("skipped", []), ("copies", 1)):  # most models have none, and keep the hash that they had without these words
            if structure[name] == usual:
                del structure[name]
        for writer in structure["writers"]:
            del writer["scale"]  # measured, so its last digits depend on the dtype
        return hashlib.sha256(json.dumps(structure, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    def alpha(self, layer: int) -> float | None:
        """What a block multiplies the stream with before it adds to it; None where its parts do not come in as a sum."""
        return self.alphas[layer] if self.alphas else 1.0

    def writers_of(self, layer: int, role: Role) -> tuple[Writer, ...]:
        """The writers of that role in that layer; a part of a block may have several, and a block none."""
        return tuple(writer for writer in self.writers if writer.layer == layer and writer.role == role)


def contributions(writers: Iterable[Writer]) -> list[Writer]:
    """One writer for every contribution to the stream: several that are summed before a norm make one."""
    return list({writer.contribution: writer for writer in writers}.values())


def same_weights(one: str, other: str) -> bool | None:
    """Whether two `Layout.weights` tell of the same weights; None where they were not taken alike, or one is not known.

    They are two words: what was looked at (files, or values in memory of one dtype), and a hash of it.
    """
    looked_at, _, _ = one.partition(" ")
    if not one or looked_at != other.partition(" ")[0]:
        return None
    return one == other


def writer_edit(writer: Writer, edit: Edit, tensor: Callable[[str], Array]) -> Edit:
    """The edit of a writer's raw output that makes `edit` happen to its contribution, as far as a norm between lets it.

    `tensor` gives a parameter by name, from a model or from its files, as an array of the edit's library. Raises ControlError for an edit that no
    norm lets through: one that reads and writes along different vectors.
    """
    norm = writer.post_norm
    if norm is None:
        return edit
    gain = cast_like(tensor(norm.weight), edit.V) + norm.offset if norm.weight else library(edit.b).full_like(edit.b, norm.offset)
    before = edit_before_norm(edit, gain, norm.centred)
    if before is None:
        raise ControlError(f"An edit that reads and writes apart does not pass the norm behind {writer.module}; use it at one site.")
    return before


def writer_edits(writer: Writer, edit: Edit, tensor: Callable[[str], Array]) -> list[tuple[str, int, Edit]]:
    """(weight name, d_model axis, edit along it) for every tensor behind a writer, its post-norm's bias included."""
    before = writer_edit(writer, edit, tensor)
    edits = [(weight.name, weight.axis, before) for weight in writer.weights]
    if writer.post_norm and writer.post_norm.bias:
        edits.append((writer.post_norm.bias, 0, edit))
    return edits
