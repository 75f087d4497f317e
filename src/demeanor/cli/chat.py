"""`demeanor chat`: talking to a model on the terminal."""

from __future__ import annotations

import sys
from functools import reduce
from typing import Annotated, Optional

import typer
from rich.console import Console

from ..behaviours import Prompt
from ..behaviours.prompts import Message
from ..controls import Control, load_control
from ..detect import make_detector
from ..errors import DataError
from ..measure.condition import Condition
from ..models import Session
from ..progress import say
from .options import (
    Controls,
    Device,
    Dtype,
    In4bit,
    In8bit,
    Model,
    behaviour_named,
    opened,
)


def chat(
    model: Model,
    message: Annotated[
        Optional[str], typer.Argument(help="Say this and print the reply; without it, a conversation.", show_default=False)
    ] = None,
    control: Controls = None,
    system: Annotated[Optional[str], typer.Option(help="A system prompt.", show_default=False)] = None,
    redo_if: Annotated[
        Optional[str],
        typer.Option(
            help="Put the controls in force only where the reply shows this behaviour, and do that reply again.", show_default=False
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest reply.")] = 128,
    device: Device = None,
    dtype: Dtype = None,
    in_4bit: In4bit = False,
    in_8bit: In8bit = False,
) -> None:
    """Talk to a model, with controls in force (in the order given) or without."""

    if redo_if is not None and not control:
        raise DataError("--redo-if does a reply again with a control; name one with --control.")
    named = None if redo_if is None else behaviour_named(redo_if)
    held = reduce(Control.then, map(load_control, control)) if control else None
    session: Session = opened(model, device, dtype, in_4bit, in_8bit)
    condition = Condition(session, held, redo=None if named is None else make_detector(named.settled(session).detect, session))
    if message is not None:
        print(say_once(condition, message, system, max_new_tokens))
    else:
        converse(condition, system, max_new_tokens)


def say_once(condition: Condition, message: str, system: str | None, max_new_tokens: int) -> str:
    """The reply to one message."""
    return condition.generate([Prompt.of(message, system=system)], max_new_tokens)[0].text


def converse(condition: Condition, system: str | None, max_new_tokens: int) -> None:
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
            reply = now.generate([Prompt(messages=tuple(messages), system=system)], max_new_tokens)[0].text
            messages.append(("assistant", reply))
            print(reply)
