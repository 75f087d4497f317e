"""Which tensors of two models stand opposite each other, read side by side some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algebra.edits import ablate
from ..errors import ModelError
from ..export.matrices import Matrix, matrices_of
from ..export.names import FileTensors
from ..structure.layout import Writer, writer_edit

LEAST_GAIN = 0.05  # of a norm, in units of its usual one: a channel that is multiplied with less tells little


@dataclass(frozen=True)
class Pair:
    """One matrix of a weight in both models. name: of the tensor in the files of the first. number, count: which of how many (experts)
    it is. writer: whose weight it is, None for a weight that does not write to the stream. raw: whether what it makes comes before the
    norm behind the writer, where there is one."""

    name: str
    number: int
    count: int
    base: Matrix
    edited: Matrix
    writer: Writer | None
    raw: bool = True

    def blocks(self) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """First row, last row, and these rows of the base and of what was changed, all float32."""
        for start in range(0, self.base.rows, self.base.step):
            end = min(start + self.base.step, self.base.rows)
            before = self.base.read(start, end)
            yield start, end, before, self.edited.read(start, end) - before

    @property
    def vector(self) -> bool:
        """Whether it is a bias."""
        return self.base.columns == 1

    @property
    def forms(self) -> tuple[str, str]:
        return self.base.form, self.edited.form

    @property
    def where(self) -> str:
        return f"{self.name} (expert {self.number + 1} of {self.count})" if self.count > 1 else self.name


@dataclass(frozen=True)
class Opposite:
    """All pairs of two models, those of writers first; and the tensors that one of them alone holds."""

    base: FileTensors
    edited: FileTensors
    writing: tuple[Pair, ...]
    others: tuple[Pair, ...]
    alone: tuple[str, ...]

    def basis_at(self, pair: Pair, basis: Tensor) -> Tensor:
        """Directions [k, d] of the stream as they are in what a weight makes, each by itself: before the norm behind its writer, of length 1."""
        writer = pair.writer
        if writer is None or not pair.raw or writer.post_norm is None:
            return basis
        return torch.cat([writer_edit(writer, ablate(row[None]), self._read).V for row in basis])

    def to_stream(self, pair: Pair) -> Tensor | None:
        """What each channel of a weight's change is multiplied with, to lie along the directions of the stream: one over the norm's gain,
        less where that is small. None where there is no norm."""
        norm = pair.writer.post_norm if pair.writer and pair.raw else None
        if norm is None:
            return None
        gain = (self._read(norm.weight) if norm.weight else torch.zeros(self.base.layout.d_model)) + norm.offset
        return gain / (gain.square() + (LEAST_GAIN * gain.square().mean().sqrt()).square())

    def _read(self, name: str) -> Tensor:
        return torch.from_numpy(self.base.read(name))


def opposite(base: FileTensors, edited: FileTensors) -> Opposite:
    """The pairs of two models of one structure. ModelError where a writer's weights are not stored alike."""
    writing: list[Pair] = []
    seen: set[str] = set()
    for writer in base.layout.writers:
        named = [(weight.name, weight.axis) for weight in writer.weights]
        bias = writer.post_norm.bias if writer.post_norm else None
        for name, axis in [*named, *([(bias, 0)] if bias else [])]:
            pieces = base.of(name, axis)
            if {piece.key for piece in pieces} <= seen:  # of a writer that comes twice
                continue
            seen |= {piece.key for piece in pieces}
            writing.extend(_pairs(name, base, edited, axis, writer, raw=name != bias))
    head = base.layout.tied and edited.stored.key(base.layout.tied[1])
    taken = seen | {piece.key for pieces in edited.pieces.values() for piece in pieces}
    keys, held = (set(files.source.tensors) - taken for files in (base, edited))
    others = [pair for key in sorted(keys & held) for pair in _same_key(key, base, edited)]
    alone = keys ^ held
    if base.layout.tied and head and head in alone:  # it was the embedding
        alone.discard(head)
        others += _facing(head, matrices_of(base, base.key(base.layout.tied[0]), None), matrices_of(edited, head, None), edited)
    return Opposite(base, edited, tuple(writing), tuple(others), tuple(sorted(alone)))


def _pairs(name: str, base: FileTensors, edited: FileTensors, axis: int, writer: Writer, raw: bool) -> list[Pair]:
    """The matrices of one parameter of a writer in both models."""
    one, other = (
        [(piece.key, matrix) for piece in files.of(name, axis) for matrix in matrices_of(files, piece.key, piece.axis)] for files in (base, edited)
    )
    _refuse_unlike(name, [m for _, m in one], [m for _, m in other], edited)
    return [Pair(key, number, len(one), first, second, writer, raw) for number, ((key, first), (_, second)) in enumerate(zip(one, other))]


def _same_key(key: str, base: FileTensors, edited: FileTensors) -> list[Pair]:
    """The matrices of a tensor that does not write; none where it holds no weights."""
    return _facing(key, matrices_of(base, key, None), matrices_of(edited, key, None), edited)


def _facing(key: str, one: list[Matrix], other: list[Matrix], edited: FileTensors) -> list[Pair]:
    _refuse_unlike(key, one, other, edited)
    return [Pair(key, number, len(one), first, second, None) for number, (first, second) in enumerate(zip(one, other))]


def _refuse_unlike(name: str, one: list[Matrix], other: list[Matrix], edited: FileTensors) -> None:
    if [(m.rows, m.columns, m.outputs) for m in one] != [(m.rows, m.columns, m.outputs) for m in other]:
        raise ModelError(f"{edited.source.folder} holds {name} in another shape than the model before; an audit needs two models of one structure.")
