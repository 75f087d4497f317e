"""Norms between a writer and the residual stream: what their gain does to a direction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..arrays import A, Array, cast, library, zeros
from .bases import orthonormal
from .edits import Edit

if TYPE_CHECKING:
    from torch import Tensor, nn


def through_post_norm(basis: A, gain: A, centred: bool) -> A:
    """The basis to remove *before* a norm so that nothing in the span of `basis` comes out of it.

    basis [k, d_model] orthonormal, gain [d_model]. r.(g*n(x)) = (g*r).n(x), and an RMS norm only rescales x;
    a LayerNorm also centres it, so only the centred part of g*r can be read (algorithms.md, section 5).
    """
    return orthonormal(_before(basis, gain, centred))


def _before(basis: A, gain: A, centred: bool) -> A:
    """Rows [k, d_model] whose products with the norm's input are, but for its length, those of basis with its output."""
    rows = basis * gain
    if not centred:
        return rows
    of = library(rows)
    middle = of.mean(rows, axis=-1, keepdims=True)
    left, whole = (of.linalg.vector_norm(each, axis=-1, keepdims=True) for each in (rows - middle, rows))
    # A row that is constant comes out of no LayerNorm: what centring leaves of it is rounding.
    return of.where(left > 1e-6 * whole, rows - middle, of.zeros_like(rows))


def edit_before_norm(edit: Edit, gain: Array, centred: bool) -> Edit | None:
    """The edit to make *before* a norm so that components come out of it as if `edit` were made after it.

    Only for edits that turn or stretch the span of an orthonormal V within itself (M = K V: ablate, scale, rotate);
    None for others. The norm divides by the length of its input, which the edit changes: components come out
    times |x| / |x'|, which is why nothing less than a whole ablation is exact behind a norm.

    With G = V * gain = T Q (Q orthonormal), components before the norm are x Q^T T^T; acting on them with K and
    writing within the span of G gives V' = Q and M' = T^T K T^+T Q.
    """
    of, V, M = library(edit.V), cast(edit.V, "float64"), cast(edit.M, "float64")
    core = M @ V.mT
    if of.linalg.vector_norm(M - core @ V) > 1e-5 * of.clip(of.linalg.vector_norm(M), 1e-30, None) or bool(edit.b.any()):
        return None
    before = _before(V, cast(gain, "float64"), centred)
    Q = orthonormal(before)
    T = before @ Q.mT
    write = T.mT @ core @ of.linalg.pinv(T).mT @ Q
    return Edit(Q, write, zeros(Q.shape[-1:], Q)).to(edit.V)


def measured_gain(norm: nn.Module, d_model: int, like: Tensor) -> tuple[Tensor, Tensor, bool]:
    """gain [d_model], bias [d_model] and whether it centres, read numerically from a norm module.

    norm(x) = g * n(x) + c with n odd, so g n(x) = (norm(x) - norm(-x)) / 2. A LayerNorm gives the same for a
    shifted x, an RMS norm does not. Covers 1 + weight, no weight and biases without naming a class.
    """
    import torch

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
