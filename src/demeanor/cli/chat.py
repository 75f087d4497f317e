"""`demeanor chat`: talking to a model on the terminal."""

from __future__ import annotations

from typing import Annotated, Self

import torch
from pydantic import Field, model_validator

from ..behaviours import Prompt
from ..controls import load_control
from ..controls.plan import ControlNames
from ..detect import make_detector
from ..io.plan import Flag
from ..models import Loading
from ..models.plan import ModelPlan
from .conversation import Conversation, Speaker, converse, print_piece
from .from_model import from_plans
from .sessions import behaviour_named, opened


class ChatPlan(ModelPlan):
    """What is said to the model, and under what."""

    message: Annotated[str | None, Flag(positional="MESSAGE")] = Field(
        default=None, description="what is said, once; without it, a conversation"
    )
    controls: ControlNames = ()
    system: str | None = Field(default=None, description="system prompt")
    redo_if: str | None = Field(
        default=None, description="behaviour whose replies are done again with the controls in force, which are so nowhere else"
    )

    temperature: float | None = Field(default=None, gt=0, le=100, description="temperature of sampling; greedy unless given")
    top_p: float = Field(default=1.0, gt=0, le=1, description="share of the likeliest next tokens' probability that is sampled from")
    seed: int | None = Field(default=None, ge=0, lt=2**32, description="seed of sampling")

    @model_validator(mode="after")
    def _something_to_redo_with(self) -> Self:
        if self.redo_if is not None and not self.controls:
            raise ValueError("`redo_if` does a reply again with a control; name one with `controls`")
        if self.temperature is None and (self.top_p != 1 or self.seed is not None):
            raise ValueError("`top_p` and `seed` are for sampling; give a `temperature` too")
        if self.temperature is not None and self.redo_if is not None:
            raise ValueError("what is done again is generated greedily; leave out `temperature` or `redo_if`")
        return self


class ChatLoading(Loading):
    """How the model is loaded; replies may be longer than those that are judged."""

    reply_tokens: int = Field(default=128, ge=1, description=Loading.model_fields["reply_tokens"].description)


@from_plans
def chat(plan: ChatPlan, loading: ChatLoading) -> None:
    """A conversation with a model, with controls in force (in the order given) or without. /help lists what can be changed on the way."""
    named = None if plan.redo_if is None else behaviour_named(plan.redo_if)
    controls = [(name, load_control(name)) for name in plan.controls]
    session = opened(plan.model, loading)
    if plan.seed is not None:
        torch.manual_seed(plan.seed)
    redo = None if named is None else make_detector(named.settled(session).detect, session)
    speaker = Speaker(session, controls, redo, plan.temperature, plan.top_p)
    if plan.message is None:
        converse(Conversation(speaker, plan.system))
        return
    speaker.answer(Prompt.of(plan.message, system=plan.system), print_piece)
    print()
