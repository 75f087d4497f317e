"""The model and the behaviour that a plan names, and how many prompts it uses."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..io.plan import BasePlan, Flag

MODEL_HELP = "model: organism, a model folder, a GGUF file, a PEFT adapter folder, or a Hub id (owner/model, owner/model@revision, owner/repo:file.gguf)"
ModelName = Annotated[str, Flag(positional="MODEL"), Field(description=MODEL_HELP)]
BEHAVIOUR_HELP = "preset (over-refusal, refusal, toxicity, rudeness, cheer, gloom) or path of a behaviour file"
BehaviourName = Annotated[str, Flag(("--behaviour", "-b")), Field(description=BEHAVIOUR_HELP)]
BehaviourNames = Annotated[tuple[str, ...], Flag(("--behaviour", "-b")), Field(description=f"{BEHAVIOUR_HELP}; repeat for several")]
MaxPrompts = Annotated[int | None, Field(ge=1, description="most prompts of each split of each set that are used")]
BATTERY_HELP = "the built-in battery too: 120 short questions of counting, copying, arithmetic, spelling and order, before and after"
Battery = Annotated[bool, Field(description=BATTERY_HELP)]
ROBUST_HELP = "prompts worded otherwise too: built-in rewordings of the test prompts, and the sets that the behaviour names as robust"
Robust = Annotated[bool, Field(description=ROBUST_HELP)]


class ModelPlan(BasePlan):
    """A plan that names a model."""

    model: ModelName


class BehaviourPlan(ModelPlan):
    """A plan that names a model and a behaviour of it."""

    behaviour: BehaviourName
