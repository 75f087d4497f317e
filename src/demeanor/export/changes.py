"""What is done to each tensor of the files: all adapters and edits of a control that touch it, as one change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Protocol

import numpy as np

from ..algebra.bases import orthonormal
from ..algebra.edits import Edit, compose
from ..arrays import Array, cast, in_numpy, library, zeros
from ..controls import Control, Part
from ..errors import ControlError
from ..structure.forms import Packed
from ..structure.layout import Layout, writer_edits
from ..structure.stored_names import Piece

MOST_KEPT = 16  # directions along which rounding is kept from changing anything; an adapter of higher rank is rounded to the nearest


class Tensors(Protocol):
    """The tensors of a model: those of its files, or of the model as it is loaded."""

    layout: Layout

    @property
    def packed(self) -> Mapping[str, Packed]:
        """Weights in few bits, by name."""

    def read(self, name: str) -> Array:
        """A whole (small) tensor, float32, of the library of the control's arrays."""

    def of(self, name: str, axis: int) -> tuple[Piece, ...]:
        """Those that hold a parameter of the layout, and where its outputs are."""

    def linear(self, module: str, out: int, into: int, transposed: bool) -> str:
        """The one that is a linear layer's weight."""


@dataclass(frozen=True)
class LowRank:
    """left [out, r] right [r, in], to be added to a weight [out, in]."""

    left: Array
    right: Array


@dataclass(frozen=True)
class Change:
    """W + left right, then W + (W V^T) M along `axis`, which is the outputs; float32 throughout.

    basis [k, d]: the orthonormal directions of the outputs along which the result is to be exact. packed: how the weight lies in the
    files, where that is in few bits. keep_norms: whether what one input says is scaled back to the length that it had.
    """

    axis: int
    low_rank: LowRank | None
    edit: Edit
    basis: Array
    packed: Packed | None = None
    keep_norms: bool = False

    def converted(self, convert: Callable[[Array], Array]) -> Change:
        """The same with its arrays as `convert` makes them."""
        low_rank = self.low_rank and LowRank(convert(self.low_rank.left), convert(self.low_rank.right))
        edit = Edit(convert(self.edit.V), convert(self.edit.M), convert(self.edit.b))
        return replace(self, low_rank=low_rank, edit=edit, basis=convert(self.basis))

    def in_numpy(self, dtype: str) -> Change:
        return self.converted(lambda array: cast(in_numpy(array), dtype))


@np.errstate(all="ignore")  # what becomes no number is told once it is to be stored
def changes(control: Control, files: Tensors, keep_norms: bool = False) -> dict[str, Change]:
    """Every tensor of the files that a control changes, that with the codes where a weight is packed. Adapters come before edits, edits in the order of the parts."""
    added: dict[str, list[LowRank]] = defaultdict(list)
    edits: dict[str, list[Edit]] = defaultdict(list)
    axes: dict[str, int] = {}
    for adapter in control.adapters:
        for module, (a, b) in adapter.low_rank.items():
            key = files.linear(module, len(b), a.shape[1], adapter.transposed)
            axes[key] = 1 if adapter.transposed else 0
            added[key].append(LowRank(adapter.dose * cast(b, "float32"), cast(a, "float32")))
    for part in control.parts:
        for key, axis, edit in _edits(part, files):
            if key in added and axes[key] != axis:
                raise ControlError(f"An adapter and an edit change {key} along different axes, so they cannot be baked together; bake one after the other.")
            axes[key] = axis
            edits[key].append(edit)
    made = {key: replace(_change(axes[key], added[key], edits[key]), keep_norms=keep_norms) for key in axes}
    return {
        files.packed[key].codes if key in files.packed else key: replace(change, packed=files.packed.get(key)) for key, change in made.items()
    }


def _change(axis: int, added: list[LowRank], edits: list[Edit]) -> Change:
    """All that is done to one tensor, as one change."""
    like = cast(added[0].left if added else edits[0].V, "float32")
    of = library(like)
    low_rank = LowRank(of.concat([one.left for one in added], axis=1), of.concat([one.right for one in added])) if added else None
    d = len(low_rank.left) if low_rank is not None else edits[0].d_model
    nothing = zeros((0, d), like)
    edit = reduce(compose, (edit.to(nothing) for edit in edits), Edit(nothing, nothing, zeros((d,), like)))
    read = of.concat([edit.V, low_rank.left.mT]) if low_rank is not None else edit.V
    basis = orthonormal(cast(read, "float64")) if len(read) <= MOST_KEPT else nothing
    return Change(axis, low_rank, edit, cast(basis, "float32"))


def _edits(part: Part, files: Tensors) -> Iterator[tuple[str, int, Edit]]:
    for writer in files.layout.writers:
        edit = part.at_writer(writer, files.layout)
        if edit is not None:
            for parameter, axis, moved in writer_edits(writer, edit, files.read):
                yield from ((piece.key, piece.axis, moved) for piece in files.of(parameter, axis))
