"""Where and when an edit acts: at which writers or site, how strongly in each layer, on which tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

from ..errors import ControlError, mistaken
from ..models import Layout, Site
from ..runtime.intervene import Reach, RowGate, Tokens
from ..runtime.positions import LAST
from ..structure.layout import Writer

FURTHEST = 2**31  # no prompt has as many tokens


@dataclass(frozen=True, kw_only=True)
class Scope:
    """At every residual writer (`site` None), or at one site; on which tokens.

    tokens: "all"; "prompt"; "reply"; "last_and_reply", the prompt's last and the reply; "positions", prompt tokens by their
    `positions` (-1 is the prompt's last); "read", the one in `positions`, where a direction was read: in the prompt, or from 0 in the reply.
    layers: a weight per layer that multiplies the dose at its writers (see `algebra.schedule.triangular`); the
    embedding has that of the first. role: only the embedding, the writers of attention, or those of the MLPs.
    """

    site: Site | None = None
    tokens: Tokens = "all"
    positions: tuple[int, ...] = ()
    layers: tuple[float, ...] | None = None
    role: Literal["embed", "attn", "mlp"] | None = None

    def __post_init__(self) -> None:
        if self.site is not None and not isinstance(self.site, Site):
            raise ControlError(mistaken("A site", self.site, 'tokens are named, as in Scope(tokens="reply")'))
        if self.role not in (None, "embed", "attn", "mlp"):
            raise ControlError(f"{self.role!r} is no role of a writer; use embed, attn or mlp.")
        if not all(isinstance(position, int) and abs(position) < FURTHEST for position in self.positions):
            raise ControlError(f"Positions are whole numbers of tokens, and {str(self.positions)[:60]} are not.")
        if self.tokens not in get_args(Tokens):
            raise ControlError(f"{self.tokens!r} names no tokens; use one of {', '.join(get_args(Tokens))}.")
        if (self.tokens in ("positions", "read")) != bool(self.positions) or (self.tokens == "read" and len(self.positions) != 1):
            raise ControlError('Positions go with tokens="positions", and the one where a direction was read with tokens="read".')
        if self.tokens == "positions" and any(position >= 0 for position in self.positions):
            raise ControlError("Positions count from the end of the prompt: -1 is its last token.")
        if self.layers is not None and not all(isinstance(weight, Real) and math.isfinite(weight) for weight in self.layers):
            raise ControlError("A scope weighs layers with finite numbers; correct the weights or the kernel.")
        if self.site is not None and (self.layers is not None or self.role is not None):
            raise ControlError("A weight per layer and a role choose among writers; they say nothing at one site.")

    @property
    def everywhere(self) -> bool:
        """Whether it acts on every token at writers, as weights do."""
        return self.site is None and self.tokens == "all"

    def weight(self, writer: Writer, layout: Layout) -> float:
        """What the dose is multiplied with at a writer; 0 where it does not act."""
        if self.role is not None and writer.role != self.role:
            return 0.0
        if self.layers is None:
            return 1.0
        if len(self.layers) != layout.n_layers:
            raise ControlError(f"The scope weighs {len(self.layers)} layers, and the model has {layout.n_layers}; give a weight per layer.")
        return self.layers[max(0, writer.layer)]

    def reach(self, gates: tuple[RowGate, ...]) -> Reach:
        """The tokens, of the rows that all gates let through."""
        return Reach(self.tokens, self.positions, gates)

    def __str__(self) -> str:
        where = f"layer {self.site.layer} {self.site.point}" if self.site else f"every writer{f' ({self.role})' if self.role else ''}"
        if self.layers is not None:
            where += f" weighed by layer {min(self.layers):g} to {max(self.layers):g}"
        tokens = {
            "all": "all tokens", "prompt": "prompt", "reply": "reply", "last_and_reply": "last prompt token and reply",
            "read": ", ".join(map(_in_words, self.positions)), "positions": f"prompt tokens {', '.join(map(str, self.positions))}",
        }  # fmt: skip
        return f"{where}, {tokens[self.tokens]}"

    def to_json(self) -> dict[str, Any]:
        site = self.site and {"layer": self.site.layer, "point": self.site.point}
        rest = {"positions": list(self.positions), "layers": self.layers and list(self.layers), "role": self.role}
        return {"site": site, "tokens": self.tokens, **{key: value for key, value in rest.items() if value}}


def _in_words(position: int) -> str:
    """A token by its position, as people count."""
    if position == LAST:
        return "last prompt token"
    return f"prompt token {position}" if position < 0 else f"reply token {position + 1}"
