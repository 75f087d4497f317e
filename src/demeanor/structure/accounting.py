"""Sums: which values, each times a scalar, make up another one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .replay import Call

RESIDUAL_TOLERANCE = 1e-5  # of the accounting, relative to what is added
NOISE = 1e-12  # the steps in which a residual is told: what is finer depends on where numbers lie in memory, so on the process
FEW = 14  # values of which four together are still tried
LARGEST_SUM = 4


class Sum(NamedTuple):
    """target = alpha stream + sum scalar_i term_i, up to `residual` of what is added to the stream."""

    terms: tuple[str, ...]
    scalars: tuple[float, ...]
    alpha: float
    residual: float


def fit(columns: list[Tensor], target: Tensor, relative_to: Tensor) -> tuple[list[float], float]:
    """Least-squares scalars for target = sum scalar_i column_i, and the residual relative to a norm."""
    matrix, target = torch.stack([c.detach().reshape(-1) for c in columns], 1), target.detach()
    scalars = torch.linalg.lstsq(matrix, target.reshape(-1, 1)).solution
    left = target.reshape(-1, 1) - matrix @ scalars
    return scalars[:, 0].tolist(), float(left.norm() / relative_to.norm())


def told(residual: float) -> float:
    """A residual, rounded up to what every process measures alike."""
    return math.ceil(residual / NOISE) * NOISE


def distinct_values(calls: Iterable[Call], stream: Tensor | None) -> dict[str, Tensor]:
    """What modules returned besides the stream, each value once: of those in finishing order the innermost that made it, in the stream's shape if one is."""
    distinct: dict[str, Tensor] = {}
    for call in calls:
        value = call.out.detach()
        if stream is not None and same_values(value, stream):
            continue
        known = next((name for name, other in distinct.items() if same_values(value, other)), None)
        if known is not None and (stream is None or distinct[known].shape == stream.shape or value.shape != stream.shape):
            continue
        if known is not None:  # experts return a flat list of tokens, and the module around them the stream's rows
            del distinct[known]
        distinct[call.name] = value
    return distinct


def same_values(value: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers in the same order, whatever their shapes."""
    return value.numel() == other.numel() and torch.equal(value.reshape(-1), other.reshape(-1))


def summed(target: Tensor, stream: Tensor | None, values: Mapping[str, Tensor], tolerance: float = RESIDUAL_TOLERANCE) -> tuple[Sum | None, float]:
    """The fewest values that explain target - alpha stream (target alone without a stream), and the smallest residual that was seen."""
    best, flat = 1.0, {name: value.reshape(-1) for name, value in values.items()}
    whole, base = target.detach().reshape(-1), [] if stream is None else [stream.reshape(-1)]
    for size in range(1, LARGEST_SUM + (len(flat) <= FEW)):
        for names in itertools.combinations(flat, size):
            scalars, _ = fit([*base, *(flat[name] for name in names)], whole, whole)
            alpha = scalars[0] if base else 0.0
            update = whole - alpha * base[0] if base else whole
            explained = sum(scalar * flat[name] for scalar, name in zip(scalars[len(base) :], names))
            residual = float((update - explained).norm() / update.norm())
            if residual <= tolerance:
                return Sum(names, tuple(scalars[len(base) :]), alpha, residual), residual
            best = min(best, residual)
    return None, best
