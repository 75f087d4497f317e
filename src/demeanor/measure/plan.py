"""What measuring depends on: the plans of `measure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from ..io.plan import BasePlan, Flag
from ..models.plan import Battery, MaxPrompts, Robust
from .suites import NAMED


class MeasurePlan(BasePlan):
    """Who is measured besides the control, and on how many prompts."""

    prompting: str | None = Field(default=None, description="text that opens every system prompt, measured beside the controls")
    max_prompts: MaxPrompts = None
    battery: Battery = False
    robust: Robust = False


class ComparisonPlan(BasePlan):
    """What is compared with what besides the untouched model and its controls."""

    redo: bool = Field(
        default=False, description="second thoughts too: each control in force only where the reply without it shows the behaviour"
    )
    base: str | None = Field(default=None, description="model to compare with instead of the untouched MODEL, also inside")
    embedder: str | None = Field(
        default=None, description="sentence-transformers model for the similarity of prompt and reply; the base's own states unless given"
    )

    @model_validator(mode="after")
    def _needs_a_base(self) -> Self:
        if self.embedder is not None and self.base is None:
            raise ValueError("`embedder` compares what two models say; name the other one with `base`")
        return self


class SuitePlan(BasePlan):
    """Tasks of lm-eval, and how they are asked."""

    suites: Annotated[tuple[str, ...], Flag(("--suite",))] = Field(
        default=(),
        description=f"capability by lm-eval (the extra eval): a task, group or tag of its, a task's YAML file, or {', '.join(NAMED)}; repeat for several",
    )
    suite_limit: int | None = Field(default=None, ge=1, description="most questions of each task, its first")
    suite_folder: Path | None = Field(default=None, description="folder with YAML files of your own tasks")
    suite_chat: bool = Field(default=False, description="questions through the model's chat template")

    @model_validator(mode="after")
    def _nothing_without_a_suite(self) -> Self:
        useless = next((name for name in ("suite_limit", "suite_folder", "suite_chat") if getattr(self, name)), None)
        if useless is not None and not self.suites:
            raise ValueError(f"`{useless}` does nothing without `suites`; add that, or leave it out")
        return self
