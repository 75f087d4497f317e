"""`demeanor chat`: talking to a model on the terminal."""

from __future__ import annotations

import sys
from functools import reduce
from typing import Annotated, Self

from pydantic import Field, model_validator
from rich.console import Console

from ..behaviours import Prompt
from ..behaviours.prompts import Message
from ..controls import Control, load_control
from ..controls.plan import ControlNames
from ..detect import make_detector
from ..io.plan import Flag
from ..measure.condition import Condition
from ..models import Loading
from ..models.plan import ModelPlan
from ..progress import printable, say
from .from_model import from_plans
from .options import behaviour_named, opened


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

    @model_validator(mode="after")
    def _something_to_redo_with(self) -> Self:
        if self.redo_if is not None and not self.controls:
            raise ValueError("`redo_if` does a reply again with a control; name one with `controls`")
        return self


class ChatLoading(Loading):
    """How the model is loaded; replies may be longer than those that are judged."""

    reply_tokens: int = Field(default=128, ge=1, description=Loading.model_fields["reply_tokens"].description)


@from_plans
def chat(plan: ChatPlan, loading: ChatLoading) -> None:
    """A conversation with a model, with controls in force (in the order given) or without."""
    named = None if plan.redo_if is None else behaviour_named(plan.redo_if)
    control = reduce(Control.then, map(load_control, plan.controls)) if plan.controls else None
    session = opened(plan.model, loading)
    condition = Condition(session, control, redo=None if named is None else make_detector(named.settled(session).detect, session))
    if plan.message is not None:
        print(printable(say_once(condition, plan.message, plan.system)))
    else:
        converse(condition, plan.system)


def say_once(condition: Condition, message: str, system: str | None) -> str:
    """The reply to one message."""
    return condition.generate([Prompt.of(message, system=system)], condition.session.reply_tokens)[0].text


def converse(condition: Condition, system: str | None) -> None:
    """A conversation until an empty line or the end of the input; with a control, `/base` toggles it off and on."""
    console, active = Console(), True
    messages: list[Message] = []
    say(
        "An empty line ends the conversation; /new starts another"
        + ("." if condition.untouched else "; /base switches the controls off and on.")
    )
    while True:
        try:
            line = (console.input("[bold]you[/bold] ") if sys.stdin.isatty() else input()).strip()
        except EOFError:
            return
        if not line:
            return
        if line == "/new":
            messages = []
        elif line == "/base" and not condition.untouched:
            active, messages = not active, []
            say(f"Controls {'on' if active else 'off'}; a new conversation, so that earlier replies do not colour it.")
        elif line.startswith("/"):
            say(f"There is no {line.split()[0]}.")
        else:
            messages.append(("user", line))
            now = condition if active else Condition(condition.session)
            reply = now.generate([Prompt(messages=tuple(messages), system=system)], condition.session.reply_tokens)[0].text
            messages.append(("assistant", reply))
            print(printable(reply))
