"""Talking to a model on the terminal."""

from __future__ import annotations

import sys

from rich.console import Console

from .behaviours import Prompt
from .behaviours.prompts import Message
from .measure.speaker import Speaker
from .progress import say


def say_once(speaker: Speaker, message: str, system: str | None, max_new_tokens: int) -> str:
    """The reply to one message."""
    return speaker.generate([Prompt.of(message, system=system)], max_new_tokens)[0].text


def converse(speaker: Speaker, system: str | None, max_new_tokens: int) -> None:
    """A conversation until an empty line or the end of the input; with a control, `/base` toggles it off and on."""
    console, active = Console(), True
    messages: list[Message] = []
    say(
        "An empty line ends the conversation; /new starts another"
        + ("." if speaker.untouched else "; /base switches the controls off and on.")
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
        elif line == "/base" and not speaker.untouched:
            active, messages = not active, []
            say(f"Controls {'on' if active else 'off'}; a new conversation, so that earlier replies do not colour it.")
        elif line.startswith("/"):
            say(f"There is no {line.split()[0]}.")
        else:
            messages.append(("user", line))
            now = speaker if active else Speaker(speaker.session)
            reply = now.generate([Prompt(tuple(messages), system=system)], max_new_tokens)[0].text
            messages.append(("assistant", reply))
            print(reply)
