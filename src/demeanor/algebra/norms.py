"""Norms between a writer and the residual stream: what their gain does to a direction."""

from __future__ import annotations

import torch
from torch import Tensor

from .directions import orthonormal


def through_post_norm(basis: Tensor, gain: Tensor, centred: bool) -> Tensor:
    """The basis to remove *before* a norm so that nothing in the span of `basis` comes out of it.

    basis [k, d_model] orthonormal, gain [d_model]. r.(g*n(x)) = (g*r).n(x), and an RMS norm only rescales x;
    a LayerNorm also centres it, so only the centred part of g*r can be read (algorithms.md, section 5).
    """
    rows = basis * gain
    if centred:
        centred_rows = rows - rows.mean(-1, keepdim=True)
        # A row that is constant comes out of no LayerNorm: what centring leaves of it is rounding.
        rows = centred_rows[centred_rows.norm(dim=-1) > 1e-6 * rows.norm(dim=-1)]
    return orthonormal(rows)


def measured_gain(norm: torch.nn.Module, d_model: int, like: Tensor) -> tuple[Tensor, Tensor, bool]:
    """gain [d_model], bias [d_model] and whether it centres, read numerically from a norm module.

    norm(x) = g * n(x) + c with n odd, so g n(x) = (norm(x) - norm(-x)) / 2. A LayerNorm gives the same for a
    shifted x, an RMS norm does not. Covers 1 + weight, no weight and biases without naming a class.
    """
    rng = torch.Generator().manual_seed(0)
    x = (1 + torch.rand(d_model, generator=rng, dtype=torch.float64)) * torch.tensor([1.0, -1.0]).repeat(d_model)[:d_model]

    def halves(probe: Tensor) -> tuple[Tensor, Tensor]:
        probe = probe.to(like)[None, None]
        plus, minus = norm(probe)[0, 0].double(), norm(-probe)[0, 0].double()
        return (plus - minus) / 2, (plus + minus) / 2

    odd, even = halves(x)
    shifted, _ = halves(x + 3.0)
    centred = bool((odd - shifted).abs().max() < 1e-3 * odd.abs().max())
    base = (x - x.mean() if centred else x).to(odd)
    return odd / (base / base.square().mean().sqrt()), even, centred
