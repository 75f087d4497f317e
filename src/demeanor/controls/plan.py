"""What controls are made of: the plans of `demeanor control`, and files of controls and directions by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ..algebra.schedule import triangular
from ..errors import DataError
from ..io.plan import BasePlan, Flag
from ..models.plan import BehaviourNames, MaxPrompts
from .constructors import Along
from .direction import Direction
from .scope import Scope

CONTROL_HELP = "control file, FILE or FILE:DOSE, or one on the Hub, OWNER/NAME"
ControlName = Annotated[str, Flag(("--control", "-c")), Field(description=CONTROL_HELP)]
ControlNames = Annotated[tuple[str, ...], Flag(("--control", "-c")), Field(description=f"{CONTROL_HELP}; repeat for several")]
DirectionName = Annotated[str, Flag(positional="DIRECTION"), Field(description="direction file, from find")]


class ControlPlan(BasePlan):
    """The control that is worked on."""

    control: ControlName


class ControlsPlan(BasePlan):
    """The controls that are worked on."""

    controls: ControlNames = ()


class DirectionPlan(BasePlan):
    """The direction that is worked on."""

    direction: DirectionName


class TokensPlan(BasePlan):
    """On which tokens an edit acts, at the direction's own site."""

    tokens: str = Field(
        default="last_and_reply",
        description="tokens that are edited: all, prompt, reply, last_and_reply, read (the one where the direction was read), or places in the prompt such as -1,-2 (-1 is its last token)",
    )

    def reach(self) -> tuple[Any, tuple[int, ...]]:
        """The name of the tokens, and their places in the prompt."""
        try:
            return "positions", tuple(int(place) for place in self.tokens.split(","))
        except ValueError:
            return self.tokens, ()


class ScopePlan(TokensPlan):
    """On which tokens, and at which writers or site."""

    tokens: str = Field(default="all", description=TokensPlan.model_fields["tokens"].description)
    at_site: bool = Field(default=False, description="the direction's own site instead of every writer")
    kernel: str | None = Field(
        default=None,
        description="triangle that weighs layers, PEAK,POSITION,HALF_WIDTH,EDGE: PEAK at POSITION, EDGE at HALF_WIDTH from it, 0 beyond; positions from 0 (first layer) to 1 (last)",
    )

    def scope(self, direction: Direction) -> Scope:
        """DataError for a kernel that is none, ControlError for what cannot be combined."""
        name, positions = self.reach()
        layers = None if self.kernel is None else _weights(self.kernel, direction.layout.n_layers)
        return direction.scope(name, positions, at_site=self.at_site, layers=layers)


def _weights(kernel: str, n_layers: int) -> tuple[float, ...]:
    try:
        peak, position, half_width, edge = (float(number) for number in kernel.split(","))
        return triangular(n_layers, peak, position, half_width, edge)
    except ValueError as error:
        raise DataError(f"A kernel is PEAK,POSITION,HALF_WIDTH,EDGE, four numbers with a positive half-width, not {kernel!r}.") from error


class AblatePlan(ScopePlan):
    """How much of a direction is removed, and where."""

    strength: float = Field(default=1.0, description="share of the component that is removed; 1 removes it whole")

    @property
    def usual(self) -> bool:
        """Whether nothing was said of where: everywhere, and of what a reader reads at its own site."""
        return self.tokens == "all" and not self.at_site and self.kernel is None


class ScalePlan(ScopePlan):
    """How much of a direction there is to be."""

    factor: float = Field(description="what the component is multiplied with; 0 removes it, -1 mirrors it")


class RotatePlan(ScopePlan):
    """Towards which other direction, and how far."""

    towards: Annotated[str, Flag(positional="TOWARDS")] = Field(description="direction file to turn towards")
    degrees: float = Field(description="angle, -360 to 360")


class AddPlan(TokensPlan):
    """How far the stream is moved."""

    dose: float = Field(description="units of the class gap; -1 moves from the shows mean to the lacks mean, +1 the other way")
    along: Along = Field(
        default="direction", description="what is added: direction, the class gap at the direction's own layer; layers, every middle layer's own gap, each with its share of the dose"
    )


def _class_or_number(value: Any) -> Any:
    if value in ("lacks", "shows"):
        return value
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a component is held at lacks, at shows or at a number, not at {value!r}") from error


class ClampPlan(TokensPlan):
    """Where the component is held."""

    to: Annotated[Literal["lacks", "shows"] | float, BeforeValidator(_class_or_number)] = Field(
        default="lacks", description="value that it is held at: lacks, shows (the means of those sets) or a number"
    )


class ConvertPlan(BasePlan):
    """What another tool made, and what it is for."""

    file: Annotated[Path, Flag(positional="FILE")] = Field(
        description="direction of another tool, one tensor [d_model] in a .pt file; a control vector of llama.cpp or repeng (.gguf); or a PEFT adapter folder"
    )
    like: str = Field(
        description="what it is for: a model, or a file that holds its structure (a control, a direction, the JSON of inspect)"
    )
    strength: float = Field(default=1.0, description="share of the component that is removed, 1 removes it whole; or what a control vector or an adapter is multiplied with")


class ThenPlan(BasePlan):
    """Two controls, and on what they are measured together."""

    first: Annotated[str, Flag(positional="FIRST")] = Field(description=CONTROL_HELP)
    second: Annotated[str, Flag(positional="SECOND")] = Field(description="control that acts after it, FILE or FILE:DOSE")
    model: str | None = Field(default=None, description="model on which what each and both do to every --behaviour is measured (val)")
    behaviours: BehaviourNames = ()
    max_prompts: MaxPrompts = None

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.model is None) != (not self.behaviours):
            raise ValueError(
                "what controls do to each other's behaviours is measured on a model; give both `model` and `behaviours`, or neither"
            )
        return self


class ShowPlan(BasePlan):
    """The control that is shown, and where it is checked."""

    control: Annotated[str, Flag(positional="CONTROL")] = Field(description=CONTROL_HELP)
    check: str | None = Field(default=None, description="model in which what the control really edits is counted")
