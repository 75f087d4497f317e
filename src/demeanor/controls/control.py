"""A control: an ordered list of (edit, scope, gate), and of states for single prompts, bound to the structure of one model.

Controls are values: `.scaled(x)`, `.then(other)` and `.when(gate)` return new ones. A control holds
directions, not hooks; `Session.controlled` turns it into hooks and `bake` into weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, Literal

from torch import Tensor

from ..algebra import edits
from ..errors import ControlError
from ..models import Layout, Site
from ..models.capture import taps
from ..models.intervene import Intervention, Tokens, at_writers
from ..models.states import States
from ..version import __version__
from .gate import Gate
from .scope import Scope

Kind = Literal["ablate", "add"]
LARGEST_DOSE = 100


@dataclass(frozen=True, eq=False)
class Part:
    """One edit of a control. `ablate`: vectors [k, d_model] orthonormal, dose = strength. `add`: one offset [1, d_model]."""

    kind: Kind
    vectors: Tensor
    dose: float
    scope: Scope
    gate: Gate | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.dose) or abs(self.dose) > LARGEST_DOSE or not self.vectors.isfinite().all():
            raise ControlError(
                f"A control with dose {self.dose:g} is not a usable edit; doses are numbers from -{LARGEST_DOSE} to {LARGEST_DOSE}."
            )

    def edit(self) -> edits.Edit:
        if self.kind == "ablate":
            return edits.ablate(self.vectors, self.dose)
        return edits.add(self.vectors[0] * self.dose)

    def __str__(self) -> str:
        text = f"{self.kind} (rank {len(self.vectors)}, dose {self.dose:g}) at {self.scope}"
        return f"{text}, where {self.gate}" if self.gate else text


@dataclass(frozen=True, eq=False, repr=False)
class Control:
    """What is done to a model; see the module. `made_from` records how (behaviour, method, sites, versions)."""

    parts: tuple[Part, ...]
    layout: Layout
    model_name: str
    made_from: Mapping[str, Any] = field(default_factory=dict)
    states: tuple[States, ...] = ()

    @property
    def layout_hash(self) -> str:
        return self.layout.hash

    def scaled(self, dose: float) -> Control:
        """`dose` times every edit: 0 is the untouched model."""
        parts = tuple(replace(part, dose=part.dose * dose) for part in self.parts)
        return replace(self, parts=parts, states=tuple(each.scaled(dose) for each in self.states))

    def then(self, other: Control) -> Control:
        """Both, this one first. Raises ControlError when they are bound to different structures."""
        if other.layout_hash != self.layout_hash:
            raise ControlError(
                f"The controls were made for different structures ({self.layout_hash} and {other.layout_hash}) and cannot act together."
            )
        made_from = {"then": [dict(self.made_from), dict(other.made_from)]}
        return replace(self, parts=self.parts + other.parts, made_from=made_from, states=self.states + other.states)

    def when(self, gate: Gate) -> Control:
        """The same, only on rows on which the gate fires. Raises ControlError where a part has a gate already."""
        if any(part.gate is not None for part in self.parts):
            raise ControlError("This control has a gate already; gate its parts one by one, then combine them with .then().")
        if self.states:
            raise ControlError(
                "States act on their own prompts alone, so they take no gate; gate the rest, then combine them with .then()."
            )
        return replace(self, parts=tuple(replace(part, gate=gate) for part in self.parts))

    def bakeable(self) -> str | None:
        """None when weights can do exactly the same, else the reason why they cannot."""
        if self.states:
            return "it holds states for single prompts, which weights cannot tell apart; distil it instead"
        for part in self.parts:
            if part.gate is not None:
                return "it is gated per request; distil it instead, or bake it without its gate"
            if part.kind != "ablate" or part.scope != Scope():
                return f"{part.kind} at {part.scope} is done at run time; only ablation at every writer can be written into the weights"
        return None

    def interventions(self, layout: Layout, tensor: Callable[[str], Tensor]) -> list[Intervention]:
        """The control as edits at the modules of a model with this layout; `tensor` gives its parameters by name."""
        return [item for part in self.parts for item in _at_modules(part, layout, tensor)]

    def __str__(self) -> str:
        return "; then ".join(map(str, (*self.parts, *self.states)))

    def __repr__(self) -> str:
        return f"<Control for {self.model_name}: {self}>"


def _at_modules(part: Part, layout: Layout, tensor: Callable[[str], Tensor]) -> Iterable[Intervention]:
    site = part.scope.site
    if site is None:
        vectors = part.vectors.to(tensor(layout.writers[0].weights[0].name).device)
        return at_writers(layout, vectors, part.dose, tensor, part.gate)
    places = taps(layout, site)
    if len(places) != 1 or places[0].scale != 1.0:
        raise ControlError(f"An edit cannot act at {site.point} of this model; use resid_pre or resid_post.")
    return [Intervention(places[0].module, places[0].side, part.edit(), part.scope.tokens, part.gate, part.scope.offset)]


def at_site(site: Site, tokens: Tokens, offset: int) -> Scope:
    """The scope of `add`: one site, on some tokens."""
    return Scope(Site(site.layer, site.point), tokens, offset if tokens == "read" else 0)


def provenance(**how: Any) -> dict[str, Any]:
    """`how`, with the versions that made it."""
    return {**how, "versions": {"demeanor": __version__} | {name: version(name) for name in ("torch", "transformers", "safetensors")}}
