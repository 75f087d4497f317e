"""What scoring replies depends on: the plans of `meter run` and `meter score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from ...controls.plan import CONTROL_HELP
from ...io.plan import BasePlan, Flag
from ...models.plan import BEHAVIOUR_HELP, MaxPrompts, ModelPlan

TOXIC = "toxicity"


class ReplyPlan(ModelPlan):
    """Who replies to what, and what scores the replies."""

    behaviours: Annotated[tuple[str, ...], Flag(("--behaviour", "-b"))] = Field(
        default=(TOXIC,),
        min_length=1,
        description=f"{BEHAVIOUR_HELP}; its prompts are replied to and its detector scores the replies, and of further ones the detector does",
    )
    control: Annotated[str | None, Flag(("--control", "-c"))] = Field(default=None, description=f"{CONTROL_HELP}, in force")
    max_prompts: MaxPrompts = None


class ScorePlan(BasePlan):
    """The replies of a file, and what scores them."""

    file: Annotated[Path, Flag(positional="FILE")] = Field(description="CSV, JSON, JSONL or Parquet file with a reply a row")
    behaviours: Annotated[tuple[str, ...], Flag(("--behaviour", "-b"))] = Field(
        default=(TOXIC,), min_length=1, description=f"{BEHAVIOUR_HELP}, whose detector scores the replies; repeat for several columns"
    )
    column: str = Field(default="reply", description="column of replies")
    prompt: str | None = Field(default=None, description="column of prompts, for detectors that look at them")
    model: str | None = Field(default=None, description="model that is asked, for detectors that ask one")
