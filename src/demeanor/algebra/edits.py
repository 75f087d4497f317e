"""The one form of every edit: x -> x + (x V^T) M + b. algorithms.md, section 5.

ablate, scale, rotate, oblique, add, clamp and transport are constructors of it, not classes: whatever applies,
composes, saves or bakes an edit needs to know only V, M and b.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Edit:
    """V (read) and M (write) [k, d_model], b [d_model]; any of k, M, b may be zero."""

    V: Tensor
    M: Tensor
    b: Tensor

    def __post_init__(self) -> None:
        if self.V.shape != self.M.shape or self.V.dim() != 2 or self.b.shape != self.V.shape[1:]:
            raise ValueError(f"V {tuple(self.V.shape)}, M {tuple(self.M.shape)} and b {tuple(self.b.shape)} do not fit")

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.delta(x)

    def delta(self, x: Tensor) -> Tensor:
        """What the edit adds to x [..., d_model]."""
        return (x @ self.V.mT) @ self.M + self.b

    @property
    def d_model(self) -> int:
        return int(self.V.shape[1])

    @property
    def rank(self) -> int:
        return int(self.V.shape[0])

    def scaled(self, dose: float) -> Edit:
        """`dose` times the change the edit makes; 0 is no change."""
        return Edit(self.V, self.M * dose, self.b * dose)

    def to(self, like: Tensor) -> Edit:
        return Edit(*(t.to(device=like.device, dtype=like.dtype) for t in (self.V, self.M, self.b)))


def ablate(basis: Tensor, strength: float = 1.0) -> Edit:
    """Remove `strength` of the component in the span of the orthonormal rows of basis [k, d_model]."""
    return Edit(basis, -strength * basis, basis.new_zeros(basis.shape[-1]))


def scale(basis: Tensor, factor: float) -> Edit:
    """`factor` times the component in the span of the orthonormal rows of basis [k, d_model]; the rest stays."""
    return Edit(basis, (factor - 1.0) * basis, basis.new_zeros(basis.shape[-1]))


def rotate(basis: Tensor, degrees: float) -> Edit:
    """Turn the component in the plane of basis [2, d_model] (orthonormal) from its first row towards its second."""
    if basis.shape[0] != 2:
        raise ValueError(f"a rotation needs two orthonormal rows, not {basis.shape[0]}")
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64).to(basis)  # Rot^T, for rows of coordinates
    return Edit(basis, turned @ basis - basis, basis.new_zeros(basis.shape[-1]))


def oblique(read: Tensor, write: Tensor, strength: float = 1.0) -> Edit:
    """Remove `strength` of what `read` sees by moving along `write` alone; both [k, d_model], of any length.

    x -> x - s (x W^T)(U W^T)^-1 U. At strength 1 nothing is left to read, and what `read` does not see stays.
    With one row: V = w / (w.u), M = -s u.
    """
    if read.shape != write.shape:
        raise ValueError(f"read {tuple(read.shape)} and write {tuple(write.shape)} do not fit")
    seen = read.double() @ write.double().mT  # [read, write]
    dual = torch.linalg.solve(seen, read.double())
    return Edit(dual.to(read), -strength * write, read.new_zeros(read.shape[-1]))


def add(offset: Tensor) -> Edit:
    """Add the vector offset [d_model]."""
    none = offset.new_zeros(0, offset.shape[-1])
    return Edit(none, none, offset)


def clamp(basis: Tensor, held: Tensor) -> Edit:
    """Hold the components along the orthonormal rows of basis [k, d_model] at held [k]."""
    return Edit(basis, -basis, held.to(basis) @ basis)


def transport(basis: Tensor, change: Tensor, offset: Tensor) -> Edit:
    """Components c along the orthonormal rows of basis [k, d_model] become what they are, plus c read along change [k, d_model], plus offset [k] along the
    basis: x -> x + (x B^T) change + offset B."""
    return Edit(basis, change, offset.to(basis) @ basis)


def compose(first: Edit, second: Edit) -> Edit:
    """One edit that does `first`, then `second`; the order matters. Ranks add up."""
    through = (first.M @ second.V.mT) @ second.M
    offset = first.b + second.b + (first.b @ second.V.mT) @ second.M
    return Edit(torch.cat([first.V, second.V]), torch.cat([first.M + through, second.M]), offset)


def edited(weight: Tensor, axis: int, edit: Edit) -> Tensor:
    """A weight [.., ..] whose outputs went through the linear part of an edit: W + (W V^T) M along `axis`.

    This makes what bake writes equal to what the edit does at the writer's output. `axis` is the one that is
    d_model; a bias is a weight with one axis. An edit with an offset is no map of weights (ValueError).
    """
    if bool(edit.b.any()):
        raise ValueError("an edit with an offset cannot be written into a weight")
    moved = weight.movedim(axis, -1)
    return (moved + (moved @ edit.V.mT) @ edit.M).movedim(-1, axis)
