"""A linear gate of a writer's own, in closed form: what to read of its input so that it acts on some inputs and not on others."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_gate(acting: Tensor, wanted: Tensor, kept: Tensor, keep: float, ridge: float) -> Tensor:
    """V [k, in], float64: V x is near `wanted` on inputs that are to be acted on, and near 0 on those that are to be kept.

    The least of mean over acting |V x - wanted|^2 + keep * mean over kept |V x|^2 + ridge * d |V|^2, with d the mean of the diagonal of
    what precedes. acting [n, in], wanted [n, k], kept [m, in]. Products of inputs are summed in their own dtype, the rest is float64.
    """
    rows = len(acting)
    square = (acting.T @ acting).double() / rows + keep * (kept.T @ kept).double() / len(kept)
    scale = square.diagonal().mean()
    square = square + ridge * scale * torch.eye(len(square), dtype=square.dtype, device=square.device)
    gate: Tensor = torch.linalg.solve(square, (acting.T @ wanted.to(acting.dtype)).double() / rows).T
    return gate
