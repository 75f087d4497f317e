"""A linear gate of a writer's own, in closed form: what to read of its input so that it acts on some inputs and not on others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def linear_gate(acting: Tensor, wanted: Tensor, kept: Sequence[tuple[Tensor, float]], ridge: float) -> Tensor:
    """V [k, in], float64: V x is near `wanted` on inputs that are to be acted on, and near 0 on those that are to be kept.

    The least of mean over acting |V x - wanted|^2 + sum over groups of weight * mean over the group |V x|^2 + ridge * d |V|^2, with d the
    mean of the diagonal of what precedes. acting [n, in], wanted [n, k]; `kept` are groups of inputs [m, in] with their weights.
    Products of inputs are summed in their own dtype, the rest is float64.
    """
    rows = len(acting)
    square = gram(acting).double() / rows
    for inputs, weight in kept:
        square = square + weight * gram(inputs).double() / len(inputs)
    scale = square.diagonal().mean()
    square = square + ridge * scale * torch.eye(len(square), dtype=square.dtype, device=square.device)
    gate: Tensor = torch.linalg.solve(square, (acting.T @ wanted.to(acting.dtype)).double() / rows).T
    return gate


def gram(x: Tensor, block: int = 384) -> Tensor:
    """x^T x [d, d] of x [n, d], every product of two blocks of columns computed once: near half the work of the plain product where d is large."""
    whole = x.new_empty(x.shape[1], x.shape[1])
    for first in range(0, x.shape[1], block):
        rows, rest = slice(first, first + block), slice(first + block, None)
        whole[rows, first:] = x[:, rows].T @ x[:, first:]
        whole[rest, rows] = whole[rows, rest].T
    return whole
