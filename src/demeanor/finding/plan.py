"""What finding depends on: the plans of `find`, `update`, `gate` and of the commands that fit gates."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ..behaviours import SetName
from ..controls.gate import Kind
from ..controls.plan import CONTROL_HELP
from ..io.plan import BasePlan, Flag
from ..models.plan import BEHAVIOUR_HELP, MODEL_HELP, MaxPrompts
from .select import RankBy

Layer = Annotated[int | None, Field(ge=0, description="layer in which the direction is looked for; every layer unless given")]
Ranking = Annotated[
    RankBy | None,
    Field(
        description="criterion of ranking: trade_off (most removed when ablated, less what changes elsewhere; the usual one), bypass (least left when ablated), induce (most at dose +1) or gap (means furthest apart)"
    ),
]
Trying = Literal["every", "halving"]
Tries = Annotated[
    Trying | None,
    Field(
        description="how directions are tried: every one on all prompts, or by halving, the better ones on more and more prompts; every for models of less than 20 million parameters, else halving"
    ),
]
Reading = Literal["prompts", "replies"]
ReadOf = Annotated[
    Reading,
    Field(
        description="what is read of the classes: prompts, the stream at their ends; or replies, its mean over what the model says to them, which is where a tone is"
    ),
]
GateKind = Annotated[Kind, Field(description="what the gate reads: the stream along a logistic probe, or its cosine with the class gap")]
FalsePositives = Annotated[float, Field(gt=0, lt=1, description="share of guard prompts that the gate may let through")]


class FindPlan(BasePlan):
    """Where a direction is looked for, and by what it is chosen."""

    layer: Layer = None
    rank_by: Ranking = None
    trying: Tries = None
    read: ReadOf = "prompts"
    estimators: Annotated[tuple[str, ...], Flag(("--estimator",))] = Field(
        default=(), description="estimator that is tried instead of the usual ones; repeat for several"
    )
    max_prompts: MaxPrompts = None


class StreamPlan(BasePlan):
    """Whether the model is held in memory."""

    stream: bool = Field(
        default=False, description="model read from its files block by block and never held whole; so it is in any case where it does not fit into free memory"
    )
    tried: int = Field(
        default=0, ge=0, description="directions that are tried in a second pass over the files, by the first token of replies or by replies that are given"
    )


class CheckPlan(BasePlan):
    """The behaviour that is looked at, and the model that is asked, if any."""

    behaviour: Annotated[str, Flag(positional="BEHAVIOUR")] = Field(description=BEHAVIOUR_HELP)
    model: Annotated[str | None, Flag(positional="[MODEL]")] = Field(
        default=None, description=f"{MODEL_HELP}; it is asked some prompts of each set"
    )
    per_set: int = Field(default=8, ge=1, description="prompts of each set that the model is asked")


class GatePlan(BasePlan):
    """What a gate reads, what it must not fire on, and how often it may."""

    false_positives: FalsePositives = 0.05
    against: tuple[SetName, ...] = Field(default=("guard",), min_length=1, description="sets that the gate must not fire on")
    kind: GateKind = "probe"
    max_prompts: MaxPrompts = None


Along = Annotated[
    Literal["layers", "direction"],
    Field(
        description="what a writer takes out: layers, the gap between shows and lacks behind its own layer (before the direction's layer, that one's); direction, the direction everywhere"
    ),
]


class SelectivePlan(BasePlan):
    """What a selective edit is fitted to."""

    strength: float | None = Field(
        default=None, gt=0, le=8, description="how much of the direction is taken out where prompts are to change; 1 takes it to where the others lie; chosen on val unless given"
    )
    along: Along = "layers"
    keep: float = Field(default=10.0, ge=0, description="weight of what is to stay, against what is to change")
    keep_last: float = Field(default=3.0, ge=0, description="weight of the last tokens of prompts that are to stay, beside all of their tokens")
    ridge: float = Field(default=1e-4, gt=0, description="weight of small changes, against fitting well")
    prompts: int = Field(default=128, ge=8, description="most train prompts of each set that it is fitted on; all are held in one batch")
    false_positives: FalsePositives = 0.05
    anyway: bool = Field(default=False, description="a fit even where the model does not tell what is to change from what is to be kept")


class UpdatePlan(BasePlan):
    """How many prompts are merged in."""

    max_prompts: MaxPrompts = None


class GatedPlan(BasePlan):
    """The gate that a control is made with, where there is one."""

    gate: str | None = Field(default=None, description="behaviour; the control acts only on prompts like its shows set, not its guard set")
    model: str | None = Field(default=None, description="model that the gate is fitted on")
    false_positives: FalsePositives = 0.05

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.gate is not None and self.model is None:
            raise ValueError("`gate` fits a probe on a model; name it with `model`")
        useless = next((name for name in ("model", "false_positives") if name in self.model_fields_set), None)
        if self.gate is None and useless is not None:
            raise ValueError(f"`{useless}` does nothing without `gate`; add that, or leave it out")
        return self


class WhenPlan(BasePlan):
    """The gates that a control is put behind."""

    control: Annotated[str, Flag(positional="CONTROL")] = Field(description=CONTROL_HELP)
    model: str = Field(description="model that the gates are fitted on")
    like: tuple[str, ...] = Field(
        default=(), description="behaviour; the control acts only on prompts like its shows set; repeat for several, all of which must hold"
    )
    unlike: tuple[str, ...] = Field(
        default=(), description="behaviour; the control does not act on prompts like its shows set; repeat for several"
    )
    kind: GateKind = "probe"
    false_positives: FalsePositives = 0.05

    @model_validator(mode="after")
    def _some_gate(self) -> Self:
        if not self.like and not self.unlike:
            raise ValueError("a gate needs to know what prompts it fires on; name a behaviour with `like` or `unlike`")
        return self
