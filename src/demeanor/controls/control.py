"""A control: an ordered list of (edit, scope, gate), of adapters, and of states for single prompts, bound to the structure of one model.

Controls are values: `.scaled(x)`, `.then(other)` and `.when(gate)` return new ones. A control holds
directions, not hooks; `Session.controlled` turns it into hooks and `bake` into weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ..algebra.doses import usable_dose
from ..arrays import Array
from ..errors import ControlError, mistaken
from ..io.display import brief, object_html
from ..models import Layout
from ..runtime.adapter import Adapter
from ..runtime.control_like import as_control
from ..runtime.intervene import Intervention
from ..runtime.states import States
from ..version import __version__
from .gate import Gate
from .part import Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Control:
    """What is done to a model; see the module. `made_from` records how (behaviour, method, sites, versions).

    Adapters change what layers compute, so they come before what is done to the stream, in whatever order they were put together.
    """

    parts: tuple[Part, ...]
    layout: Layout
    model_name: str
    made_from: Mapping[str, Any] = field(default_factory=dict)
    states: tuple[States, ...] = ()
    adapters: tuple[Adapter, ...] = ()

    def __post_init__(self) -> None:
        for part in self.parts:
            widths = {part.vectors.shape[1], *(gate.weights.shape[1] for gate in part.gates)}
            if widths != {self.layout.d_model}:
                raise ControlError(f"A part of the control is made for {max(widths - {self.layout.d_model})} channels, and the model has {self.layout.d_model}; make it for this model.")
        opened = sum(adapter.virtual_tokens is not None for adapter in self.adapters)
        if opened > 1 or (opened and (self.states or any(part.gates for part in self.parts))):
            raise ControlError(
                "Embeddings that open every prompt cannot act together with others of their kind, with gates or with states of single prompts; use one of them."
            )

    @property
    def layout_hash(self) -> str:
        return self.layout.hash

    @property
    def weights(self) -> str:
        """What tells the weights that it was made on from others; empty where that is not known."""
        return self.layout.weights

    def scaled(self, dose: float) -> Control:
        """`dose` times every edit: 0 is the untouched model. Raises ControlError where something cannot be scaled (clamp), and for a dose
        that is no finite number, or too large a one."""
        usable_dose(dose, "a control")
        return replace(
            self, parts=tuple(part.scaled(dose) for part in self.parts), states=tuple(each.scaled(dose) for each in self.states),
            adapters=tuple(adapter.scaled(dose) for adapter in self.adapters),
        )  # fmt: skip

    def converted(self, convert: Callable[[Array], Array]) -> Control:
        """The same with its arrays as `convert` makes them, as far as weights can hold them: those of gates and states stay."""
        return replace(
            self, parts=tuple(part.converted(convert) for part in self.parts), adapters=tuple(adapter.converted(convert) for adapter in self.adapters)
        )

    def then(self, other: Control) -> Control:
        """Both, this one first. Raises ControlError when they are bound to different structures."""
        other = as_control(other)
        if other.layout_hash != self.layout_hash:
            raise ControlError(
                f"The controls were made for different structures ({self.layout_hash} and {other.layout_hash}) and cannot act together."
            )
        made_from = {"then": [dict(self.made_from), dict(other.made_from)]}
        return replace(
            self, parts=self.parts + other.parts, made_from=made_from, states=self.states + other.states,
            adapters=self.adapters + other.adapters,
        )  # fmt: skip

    def when(self, gate: Gate) -> Control:
        """The same, only on rows on which the gate fires, and those before it: `.when(this).when(~that)`."""
        if not isinstance(gate, Gate):
            raise ControlError(mistaken("A gate", gate, "make one with gate(session, behaviour)"))
        if self.states:
            raise ControlError(
                "States act on their own prompts alone, so they take no gate; gate the rest, then combine them with .then()."
            )
        if self.adapters:
            raise ControlError("An adapter acts on every row, so it takes no gate; gate the control that it was distilled from instead.")
        return replace(self, parts=tuple(replace(part, gates=(*part.gates, gate)) for part in self.parts))

    def bakeable(self) -> str | None:
        """None when weights can do exactly the same, else the reason why they cannot."""
        if self.states:
            return "it holds states for single prompts, which weights cannot tell apart; distil it (demeanor train prefix --from)"
        reasons = [*(part.bakeable(self.layout) for part in self.parts), *(adapter.bakeable() for adapter in self.adapters)]
        return next(filter(None, reasons), None)

    def interventions(self, layout: Layout, tensor: Callable[[str], Tensor]) -> list[Intervention]:
        """The control as edits at the modules of a model with this layout; `tensor` gives its parameters by name."""
        return [item for part in self.parts for item in part.interventions(layout, tensor)]

    def __str__(self) -> str:
        return "; then ".join(map(str, (*self.adapters, *self.parts, *self.states)))

    def __repr__(self) -> str:
        return f"<Control for {brief(self.model_name, 40)}: {brief(self, 130)}>"

    def _repr_html_(self) -> str:
        facts = {"structure": self.layout_hash, "in weights": "exactly" if (reason := self.bakeable()) is None else f"no: {reason}"}
        rows = enumerate((*self.adapters, *self.parts, *self.states), start=1)
        return object_html(f"Control for {self.model_name}", facts, ("", "what is done, in this order"), rows)


def provenance(**how: Any) -> dict[str, Any]:
    """`how`, with the versions that made it."""
    return {**how, "versions": {"demeanor": __version__} | {name: version(name) for name in ("torch", "transformers", "safetensors")}}
