"""What baking depends on."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from ..controls.plan import ControlsPlan
from ..models.plan import ModelPlan


class BakePlan(ControlsPlan, ModelPlan):
    """The model whose files are edited, and the controls that are written into them, in this order."""

    verify: bool = Field(default=True, description="what is written loaded and compared with the control at run time, where memory allows")

    @model_validator(mode="after")
    def _something_to_bake(self) -> Self:
        if not self.controls:
            raise ValueError("baking needs a control; name its file with `controls`")
        return self
