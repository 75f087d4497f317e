"""Talking to a model on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import reduce

from rich.console import Console

from .behaviours import Prompt
from .behaviours.prompts import Message
from .controls import Control
from .models import Session
from .progress import say


def say_once(session: Session, controls: Sequence[Control], message: str, system: str | None, max_new_tokens: int) -> str:
    """The reply to one message."""
    with session.controlled(reduce(Control.then, controls)) if controls else nullcontext():
        return session.chat(Prompt.of(message, system=system), max_new_tokens)


def converse(session: Session, controls: Sequence[Control], system: str | None, max_new_tokens: int) -> None:
    """A conversation until an empty line or the end of the input; with controls, `/base` toggles them off and on."""
    console, active = Console(), True
    messages: list[Message] = []
    say("An empty line ends the conversation; /new starts another" + ("; /base switches the controls off and on." if controls else "."))
    while True:
        try:
            line = (console.input("[bold]you[/bold] ") if sys.stdin.isatty() else input()).strip()
        except EOFError:
            return
        if not line:
            return
        if line == "/new":
            messages = []
        elif line == "/base" and controls:
            active, messages = not active, []
            say(f"Controls {'on' if active else 'off'}; a new conversation, so that earlier replies do not colour it.")
        elif line.startswith("/"):
            say(f"There is no {line.split()[0]}.")
        else:
            messages.append(("user", line))
            with session.controlled(reduce(Control.then, controls)) if controls and active else nullcontext():
                reply = session.chat(Prompt(tuple(messages), system=system), max_new_tokens)
            messages.append(("assistant", reply))
            print(reply)
