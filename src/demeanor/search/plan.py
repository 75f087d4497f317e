"""What a search depends on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from ..finding.plan import FalsePositives
from ..io.plan import Flag
from ..models import SpreadLoading
from ..models.plan import BehaviourPlan, MaxPrompts
from .pick import KNEE, as_pick

TRIALS = 256  # where neither a number of trials nor a time is given


class SearchPlan(SpreadLoading, BehaviourPlan):
    """Everything a search depends on, as asked for."""

    trials: int | None = Field(default=None, ge=1, description=f"trials of the whole study, its seeds among them; {TRIALS} where no minutes are given")
    minutes: float | None = Field(default=None, gt=0, description="time for trials, after which the front is confirmed")
    pick: str = Field(
        default=KNEE, description='the point of the front that is taken: knee, a number of the front, or bounds such as "guard>=0.95,drift<=0.02" (the one that leaves least within them; guard there is the rate itself)'
    )
    guard: float = Field(default=0.95, ge=0, le=1, description="share of the guard prompts that show the behaviour untouched, which must still show it")
    drift: float = Field(default=0.5, gt=0, description="most that ordinary replies may drift, in nats per token")
    bakeable: bool = Field(default=False, description="only controls that weights can do exactly: no gates, nothing at one site")
    estimators: Annotated[tuple[str, ...], Flag(("--estimator",))] = Field(
        default=(), description="estimator that is tried beside the usual ones: a name, or FILE.py:NAME; repeat for several"
    )
    false_positives: FalsePositives = 0.05
    storage: str | None = Field(
        default=None, description="Optuna storage of the study, such as sqlite:///shared.db; several processes may name one; a file in the run folder unless given"
    )
    seed: int = Field(default=0, ge=0, description="seed of the study")
    confirmed: int = Field(default=8, ge=1, description="points of the front that are run with whole replies on val")
    checked: int = Field(default=6, ge=0, description="other trials that are, to tell whether quick values rank as whole replies do")
    max_prompts: MaxPrompts = None

    @field_validator("pick")
    @classmethod
    def _known_pick(cls, value: str) -> str:
        as_pick(value)
        return value

    @property
    def most(self) -> int | None:
        """Trials after which the study ends; None where time alone ends it."""
        return TRIALS if self.trials is None and self.minutes is None else self.trials

    @property
    def space(self) -> dict[str, object]:
        """What tells one study from another: all that decides what a trial is and what its values are."""
        names = ("model", "behaviour", "bakeable", "estimators", "false_positives", "guard", "drift", "seed", "max_prompts", "reply_tokens")
        return self.model_dump(mode="json", include=set(names))
