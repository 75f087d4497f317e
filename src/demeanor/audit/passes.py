"""Sums over a weight and its change, read a block of rows at a time: what an audit knows of two models without holding either.

A change is D = W' - W, seen as [d_model, n] however the weight lies in its file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .pairs import Pair

CLEAR = 0.5  # share of what moved along a direction that goes with what was there, from which a tensor tells of an ablation


@dataclass(frozen=True)
class Sketch:
    """Squares of a weight and of its change; the change times random columns [d, k], None where nothing changed."""

    weight: float
    change: float
    columns: Tensor | None


@dataclass(frozen=True)
class Along:
    """What a weight and its change are along directions: sums over its columns, a number for each of k directions.

    before: of squares of what was there; moved: of squares of what changed; both: of products of the two. columns, rows: the mean square of
    how far, of itself, the square of a column's (a row's) length changed. shorter: by how much the square of the whole length fell;
    as_ablation: by how much it would have, were each clear direction removed as strongly as it seems.
    """

    before: Tensor
    moved: Tensor
    both: Tensor
    columns: float
    rows: float
    shorter: float
    as_ablation: float


def sketch(pair: Pair, scale: Tensor | None, width: int, seed: int) -> Sketch:
    """One pass. scale [d]: what the change's channels are multiplied with."""
    weight = change = 0.0
    n = _count(pair)
    random = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    columns = torch.zeros(_width(pair), width)
    for start, end, before, delta in pair.blocks():
        weight += float(before.double().square().sum())
        delta = _scaled(delta, scale, pair, start, end)
        change += float(delta.double().square().sum())
        if pair.base.outputs == 0:
            columns[start:end] = delta @ random
        else:
            columns += delta.mT @ random[start:end]
    return Sketch(weight, change, columns if change else None)


def sizes(pair: Pair) -> Sketch:
    """The squares alone, for a weight that does not write."""
    weight = change = 0.0
    for _, _, before, delta in pair.blocks():
        weight += float(before.double().square().sum())
        change += float(delta.double().square().sum())
    return Sketch(weight, change, None)


def powered(pair: Pair, scale: Tensor | None, basis: Tensor) -> tuple[Tensor, Tensor]:
    """D^T Q^T as [k, n], and D D^T Q^T as [d, k], for the rows Q [k, d] of a basis; D's channels multiplied with `scale`."""
    right = torch.zeros(len(basis), _count(pair))
    for start, end, delta in _changes(pair, scale):
        if pair.base.outputs == 0:
            right += basis[:, start:end] @ delta
        else:
            right[:, start:end] = basis @ delta.mT
    product = torch.zeros(_width(pair), len(basis))
    for start, end, delta in _changes(pair, scale):
        if pair.base.outputs == 0:
            product[start:end] = delta @ right.mT
        else:
            product += delta.mT @ right[:, start:end].mT
    return right, product


def along(pair: Pair, basis: Tensor) -> Along:
    """What happened along the rows of a basis [k, d], and to the lengths of columns and rows."""
    there, moved = (torch.zeros(len(basis), _count(pair)) for _ in range(2))
    shape = pair.base.rows, pair.base.columns
    before_squares, after_squares = ([torch.zeros(size, dtype=torch.float64) for size in shape] for _ in range(2))
    for start, end, before, delta in pair.blocks():
        if pair.base.outputs == 0:
            there += basis[:, start:end] @ before
            moved += basis[:, start:end] @ delta
        else:
            there[:, start:end] = basis @ before.mT
            moved[:, start:end] = basis @ delta.mT
        for squares, values in ((before_squares, before), (after_squares, before + delta)):
            square = values.double().square()
            squares[0][start:end] = square.sum(1)
            squares[1] += square.sum(0)
    there, moved = there.double(), moved.double()
    before_sum, moved_sum, both = there.square().sum(1), moved.square().sum(1), (there * moved).sum(1)
    clear = both.square() > CLEAR * before_sum * moved_sum
    strength = torch.where(clear, -both / before_sum.clamp_min(1e-300), 0.0)
    as_ablation = float(((2 * strength - strength.square()) * before_sum).sum())
    by_row, by_column = (_changed(before_squares[axis], after_squares[axis]) for axis in (0, 1))
    rows, columns = (by_row, by_column) if pair.base.outputs == 0 else (by_column, by_row)
    shorter = float(before_squares[0].sum() - after_squares[0].sum())
    return Along(before_sum, moved_sum, both, columns, rows, shorter, as_ablation)


def _changed(before: Tensor, after: Tensor) -> float:
    some = before > 0
    return float(((after - before)[some] / before[some]).square().mean()) if bool(some.any()) else 0.0


def _changes(pair: Pair, scale: Tensor | None) -> Iterator[tuple[int, int, Tensor]]:
    for start, end, _, delta in pair.blocks():
        yield start, end, _scaled(delta, scale, pair, start, end)


def _scaled(delta: Tensor, scale: Tensor | None, pair: Pair, start: int, end: int) -> Tensor:
    if scale is None:
        return delta
    return delta * (scale[start:end, None] if pair.base.outputs == 0 else scale)


def _width(pair: Pair) -> int:
    return pair.base.rows if pair.base.outputs == 0 else pair.base.columns


def _count(pair: Pair) -> int:
    return pair.base.columns if pair.base.outputs == 0 else pair.base.rows
