"""What comes out of the main job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..behaviours import Behaviour
from ..calibrate.dial import Dial
from ..controls import Control, Direction
from ..export import Baked
from ..finding.find import Findings
from ..measure import Measurement
from .decision import Decision
from .plan import Plan

# Logits of the baked model against the run-time control, in standard deviations. In float32 the two must also
# reply alike; in shorter dtypes the edited weights are rounded anew, so only a gross difference is an error.
PARITY, PARITY_ROUNDED = 1e-4, 0.5


@dataclass(frozen=True)
class Parity:
    """How far the baked model, loaded anew, is from the run-time control: logits (in their standard deviations) and replies."""

    worst_logit: float
    same_replies: int
    replies: int
    dtype: str

    @property
    def exact(self) -> bool:
        if self.dtype != "float32":
            return self.worst_logit < PARITY_ROUNDED
        return self.worst_logit < PARITY and self.same_replies == self.replies

    def __str__(self) -> str:
        return f"logits within {self.worst_logit:.1e} of their standard deviation, {self.same_replies} of {self.replies} replies the same as at run time"

    @property
    def complaint(self) -> str:
        bound = PARITY if self.dtype == "float32" else PARITY_ROUNDED
        return (
            f"The baked model differs from the run-time control: logits by {self.worst_logit:.1e} standard deviations (at most {bound:.0e}"
            f" in {self.dtype}), {self.replies - self.same_replies} of {self.replies} replies."
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished job: what was found, chosen and measured, and where it is."""

    plan: Plan
    folder: Path
    behaviour: Behaviour
    found: Findings
    decision: Decision
    control: Control
    measurement: Measurement
    bakeable: Measurement | None  # of the best bakeable control, where the control is not bakeable itself
    baked: Baked | None
    not_baked: str | None  # why a bakeable control was not
    permanent: Measurement | None  # of the adapter that was distilled from a control which is not bakeable, and baked instead
    parity: Parity | None
    dial: Dial | None
    seconds: float

    @property
    def direction(self) -> Direction:
        return self.decision.chosen.direction

    @property
    def removes(self) -> bool:
        """Whether `shows` exhibit the behaviour less, by more than chance allows (exact McNemar, p < .05)."""
        was, now = self.measurement.before["shows_rate"], self.measurement.after["shows_rate"]
        return now.value < was.value and self.measurement.p["shows_rate"] < 0.05
