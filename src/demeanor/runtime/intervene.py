"""Run-time edits as values: which edit, at which side of which module, on which tokens of which rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from ..algebra.edits import Edit, add
from ..structure.layout import Layout, Writer, writer_edit
from .positions import LAST
from .sites import Site

if TYPE_CHECKING:
    from torch import Tensor

# "read" and "positions" name single tokens, by their positions.
Tokens = Literal["all", "prompt", "reply", "last_and_reply", "read", "positions"]
Side = Literal["input", "output"]


class RowGate(Protocol):
    """Decides per row whether edits fire, from what it reads at one site."""

    @property
    def site(self) -> Site: ...

    def fires(self, values: Tensor) -> Tensor:
        """values [row, d_model] -> bool [row]."""
        ...


@dataclass(frozen=True)
class Reach:
    """Which tokens an edit acts on, of the rows that all of its gates let through.

    `positions` (see the module of that name) are those that "read" and "positions" mean.
    """

    tokens: Tokens = "all"
    positions: tuple[int, ...] = ()
    gates: tuple[RowGate, ...] = ()

    def holds(self, position: int) -> bool:
        """Whether a token there is one of them."""
        if self.tokens in ("read", "positions"):
            return position in self.positions
        return {"all": True, "prompt": position < 0, "reply": position >= 0, "last_and_reply": position >= LAST}[self.tokens]

    def among(self, position: Tensor) -> Tensor:
        """The same of many tokens: position [row, token] -> bool."""
        import torch

        if self.tokens in ("read", "positions"):
            return torch.isin(position, torch.tensor(self.positions, device=position.device))
        ranges = {"all": position == position, "prompt": position < 0, "reply": position >= 0, "last_and_reply": position >= LAST}
        return ranges[self.tokens]


EVERYWHERE = Reach()


@dataclass(frozen=True, eq=False)
class Intervention:
    """One edit at the output of one module (or its input), within its reach."""

    module: str
    side: Side
    edit: Edit
    reach: Reach = EVERYWHERE


def at_writers(
    layout: Layout, edit_of: Callable[[Writer], Edit | None], tensor: Callable[[str], Tensor], reach: Reach = EVERYWHERE
) -> list[Intervention]:
    """A linear edit at every writer for which `edit_of` gives one, through post-norms: what `bake` writes, at run time."""
    interventions = []
    for writer in layout.writers:
        edit = edit_of(writer)
        if edit is None:
            continue
        interventions.append(Intervention(writer.module, "output", writer_edit(writer, edit, tensor), reach))
        if writer.post_norm and writer.post_norm.bias:  # added after the writer: its part goes where it comes in
            bias = tensor(writer.post_norm.bias).to(edit.V)
            interventions.append(Intervention(writer.post_norm.module, "output", add(edit.delta(bias)), reach))
    return interventions
