"""What calibrating depends on: the plans of `dial` and `dose`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ..finding.plan import Layer
from ..io.plan import BasePlan
from ..models.plan import MaxPrompts

Goal = Literal["remove", "induce"]
REMOVED = 0.05  # the rate that is little enough unless told


def _zero_among_them(count: int) -> int:
    if count and (count < 3 or count % 2 == 0):
        raise ValueError(f"{count} doses do not have the untouched model among them; use an odd number from 3")
    return count


Doses = Annotated[int, AfterValidator(_zero_among_them)]


class DialPlan(BasePlan):
    """At how many doses a dial is measured, and where its direction is looked for."""

    doses: Doses = Field(default=9, ge=3, le=41, description="number of doses from -1 to +1; odd, so that 0 is among them")
    layer: Layer = None
    max_prompts: MaxPrompts = None


class DosePlan(BasePlan):
    """The rate that a dose must reach, and what it may cost."""

    remove_to: float | None = Field(
        default=None, ge=0, le=1, description=f"share of shows prompts that may still show it; {REMOVED} unless given"
    )
    induce_to: float | None = Field(
        default=None, ge=0, le=1, description="share of lacks prompts that must come to show it, instead of removing"
    )
    drift_cap: float = Field(default=0.5, ge=0, description="most that ordinary replies may drift, in nats per token")
    max_prompts: MaxPrompts = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.remove_to is not None and self.induce_to is not None:
            raise ValueError("a dose removes or induces; give one of `remove_to` and `induce_to`")
        return self

    @property
    def goal(self) -> Goal:
        return "remove" if self.induce_to is None else "induce"

    @property
    def rate(self) -> float:
        """The rate to be reached: of shows at most, or of lacks at least."""
        if self.induce_to is not None:
            return self.induce_to
        return REMOVED if self.remove_to is None else self.remove_to
