"""The one form of every edit: x -> x + (x V^T) M + b. algorithms.md, section 5.

ablate, scale, rotate, oblique, add, clamp and transport are constructors of it, not classes: whatever applies,
composes, saves or bakes an edit needs to know only V, M and b. All three are torch's where an edit acts in a model, and numpy's
where it goes into files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..arrays import Array, cast, cast_like, library, zeros


@dataclass(frozen=True)
class Edit:
    """V (read) and M (write) [k, d_model], b [d_model]; any of k, M, b may be zero."""

    V: Array
    M: Array
    b: Array

    def __post_init__(self) -> None:
        if self.V.shape != self.M.shape or self.V.ndim != 2 or self.b.shape != self.V.shape[1:]:
            raise ValueError(f"V {tuple(self.V.shape)}, M {tuple(self.M.shape)} and b {tuple(self.b.shape)} do not fit")

    def __call__(self, x: Array) -> Array:
        return x + self.delta(x)

    def delta(self, x: Array) -> Array:
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

    def to(self, like: Array) -> Edit:
        return Edit(*(cast_like(array, like) for array in (self.V, self.M, self.b)))


def ablate(basis: Array, strength: float = 1.0) -> Edit:
    """Remove `strength` of the component in the span of the orthonormal rows of basis [k, d_model]."""
    return Edit(basis, -strength * basis, zeros(basis.shape[-1:], basis))


def scale(basis: Array, factor: float) -> Edit:
    """`factor` times the component in the span of the orthonormal rows of basis [k, d_model]; the rest stays."""
    return Edit(basis, (factor - 1.0) * basis, zeros(basis.shape[-1:], basis))


def rotate(basis: Array, degrees: float) -> Edit:
    """Turn the component in the plane of basis [2, d_model] (orthonormal) from its first row towards its second."""
    if basis.shape[0] != 2:
        raise ValueError(f"a rotation needs two orthonormal rows, not {basis.shape[0]}")
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned = library(basis).asarray([[cos, sin], [-sin, cos]], dtype=basis.dtype, device=basis.device)  # Rot^T, for rows of coordinates
    return Edit(basis, turned @ basis - basis, zeros(basis.shape[-1:], basis))


def oblique(read: Array, write: Array, strength: float = 1.0) -> Edit:
    """Remove `strength` of what `read` sees by moving along `write` alone; both [k, d_model], of any length.

    x -> x - s (x W^T)(U W^T)^-1 U. At strength 1 nothing is left to read, and what `read` does not see stays.
    With one row: V = w / (w.u), M = -s u.
    """
    if read.shape != write.shape:
        raise ValueError(f"read {tuple(read.shape)} and write {tuple(write.shape)} do not fit")
    exact = cast(read, "float64")
    seen = exact @ cast(write, "float64").mT  # [read, write]
    dual = library(read).linalg.solve(seen, exact)
    return Edit(cast_like(dual, read), -strength * write, zeros(read.shape[-1:], read))


def add(offset: Array) -> Edit:
    """Add the vector offset [d_model]."""
    none = zeros((0, offset.shape[-1]), offset)
    return Edit(none, none, offset)


def clamp(basis: Array, held: Array) -> Edit:
    """Hold the components along the orthonormal rows of basis [k, d_model] at held [k]."""
    return Edit(basis, -basis, cast_like(held, basis) @ basis)


def transport(basis: Array, change: Array, offset: Array) -> Edit:
    """Components c along the orthonormal rows of basis [k, d_model] become what they are, plus c read along change [k, d_model], plus offset [k] along the
    basis: x -> x + (x B^T) change + offset B."""
    return Edit(basis, change, cast_like(offset, basis) @ basis)


def compose(first: Edit, second: Edit) -> Edit:
    """One edit that does `first`, then `second`; the order matters. Ranks add up."""
    through = (first.M @ second.V.mT) @ second.M
    offset = first.b + second.b + (first.b @ second.V.mT) @ second.M
    of = library(offset)
    return Edit(of.concat([first.V, second.V]), of.concat([first.M + through, second.M]), offset)


def edited(weight: Array, axis: int, edit: Edit) -> Array:
    """A weight [.., ..] whose outputs went through the linear part of an edit: W + (W V^T) M along `axis`.

    This makes what bake writes equal to what the edit does at the writer's output. `axis` is the one that is
    d_model; a bias is a weight with one axis. An edit with an offset is no map of weights (ValueError).
    """
    if bool(edit.b.any()):
        raise ValueError("an edit with an offset cannot be written into a weight")
    of = library(weight)
    moved = of.moveaxis(weight, axis, -1)
    return of.moveaxis(moved + (moved @ edit.V.mT) @ edit.M, -1, axis)
