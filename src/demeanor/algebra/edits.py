"""The one form of every edit: x -> x + (x V^T) M + b. algorithms.md, section 5.

`ablate` and `add` are constructors of it, not classes: whatever applies, composes, saves or bakes an
edit needs to know only V, M and b.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    def scaled(self, dose: float) -> Edit:
        """`dose` times the change the edit makes; 0 is no change."""
        return Edit(self.V, self.M * dose, self.b * dose)

    def to(self, like: Tensor) -> Edit:
        return Edit(*(t.to(device=like.device, dtype=like.dtype) for t in (self.V, self.M, self.b)))


def ablate(basis: Tensor, strength: float = 1.0) -> Edit:
    """Remove `strength` of the component in the span of the orthonormal rows of basis [k, d_model]."""
    return Edit(basis, -strength * basis, basis.new_zeros(basis.shape[-1]))


def add(offset: Tensor) -> Edit:
    """Add the vector offset [d_model]."""
    none = offset.new_zeros(0, offset.shape[-1])
    return Edit(none, none, offset)


def ablated(weight: Tensor, axis: int, write: Tensor, read: Tensor, strength: float) -> Tensor:
    """A weight [.., ..] whose outputs lose `strength` of their component: W - s write^T (read W) on `axis`.

    write = read = orthonormal basis [k, d_model] makes what bake writes equal to what `ablate` does at the
    writer's output. `axis` is the one that is d_model; a bias is a weight with one axis.
    """
    moved = weight.movedim(axis, -1)
    return (moved - strength * (moved @ read.mT) @ write).movedim(-1, axis)
