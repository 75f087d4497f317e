"""What goes into the main job."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..calibrate.plan import Doses
from ..finding.plan import FalsePositives, Layer, Ranking, Tries
from ..io.plan import Flag
from ..models import SpreadLoading
from ..models.plan import Battery, BehaviourPlan, MaxPrompts, Robust


class Plan(SpreadLoading, BehaviourPlan):
    """Everything a run depends on, as asked for."""

    layer: Layer = None
    estimators: Annotated[tuple[str, ...], Flag(("--estimator",))] = Field(
        default=(), description="estimator that is tried beside the usual ones: a name, or FILE.py:NAME; repeat for several"
    )
    rank_by: Ranking = None
    trying: Tries = None
    doses: Doses | None = Field(
        default=None, ge=0, le=41, description="number of doses of the dial that are measured; odd, or 0 for none; 9 for models of less than 20 million parameters unless given"
    )
    false_positives: FalsePositives = 0.05
    max_prompts: MaxPrompts = None
    selective: bool = Field(default=True, description="selective edits tried beside gates where there is a guard; weights can hold them")
    battery: Battery = False
    robust: Robust = False
    permanent: bool = Field(
        default=False,
        description="where weights cannot do exactly what the control does, an adapter that learns to, measured beside it and baked (the extra train)",
    )
