"""The directions that the changes of all writers have in common: a sketch of every change, then one step of subspace iteration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..algebra.bases import orthonormal
from ..progress import track
from .pairs import Opposite, Pair
from .passes import Sketch, powered, sketch

MOST = 8  # directions that are looked for
WIDTH = 16  # random columns that a change is sketched with
HELD = 64  # columns that stand for all sketches so far


@dataclass(frozen=True)
class Common:
    """Directions [k, d] with most of the change in them, most first; energies [k]: the share of all that changed which lies along each,
    every weight counted in units of its own size. floor: the same of a direction like any other."""

    basis: Tensor
    energies: Tensor
    floor: float


def common_directions(models: Opposite) -> tuple[Common, list[Sketch]]:
    """The directions, and what the first pass says of every writing pair."""
    d = models.base.layout.d_model
    held = torch.zeros(d, 0, dtype=torch.float64)
    sketches = []
    for number, pair in enumerate(track(models.writing, "Reading both models", len(models.writing))):
        scale = None if _skipped(pair) else models.to_stream(pair)
        sketches.append(sketch(pair, scale, WIDTH, number))
        columns = sketches[-1].columns
        if columns is not None and not _skipped(pair) and sketches[-1].weight:
            held = torch.cat([held, columns.double() / sketches[-1].weight**0.5], dim=1)
            held = leading(held, HELD) if held.shape[1] > 4 * HELD else held
    start = leading(held, MOST)
    basis = orthonormal(start.mT).float()
    if not len(basis):
        return Common(basis, torch.zeros(0), 0.0), sketches
    return _refined(models, sketches, basis), sketches


def leading(columns: Tensor, count: int) -> Tensor:
    """[d, count or fewer] columns with the same leading left singular vectors and values as `columns` [d, n], float64."""
    left, values, _ = torch.linalg.svd(columns, full_matrices=False)
    few: Tensor = (left * values)[:, values > 1e-12 * values[:1]]
    return few[:, :count]


def _refined(models: Opposite, sketches: list[Sketch], basis: Tensor) -> Common:
    """One step of subspace iteration over all changes themselves."""
    k, d = basis.shape
    inner, product, total = torch.zeros(k, k, dtype=torch.float64), torch.zeros(d, k, dtype=torch.float64), 0.0
    changed = [(pair, one) for pair, one in zip(models.writing, sketches) if one.change and one.weight and not _skipped(pair)]
    for pair, one in track(changed, "Looking for what they share", len(changed)):
        right, left = powered(pair, models.to_stream(pair), basis)
        inner += right.double() @ right.double().mT / one.weight
        product += left.double() / one.weight
        total += one.change / one.weight
    values, vectors = torch.linalg.eigh(inner)
    order = values.argsort(descending=True)
    energies = values[order].clamp_min(0) / total
    floor = float(1 - energies.sum()) / max(1, d - k)
    found = orthonormal((product @ vectors[:, order]).mT).float()
    return Common(found, energies.float()[: len(found)], max(0.0, floor))


def _skipped(pair: Pair) -> bool:
    """Biases have one column, and a norm that centres leaves open what was taken out before it: neither says what is common."""
    norm = pair.writer.post_norm if pair.writer and pair.raw else None
    return pair.vector or (norm is not None and norm.centred)
