"""What reaches the terminal: names and replies are text."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from demeanor import progress
from demeanor.cli import terminal
from demeanor.progress import printable

ODD = ["x [/y]", "[red]x[/red]", "[bold", "\x1b[2Jgone", "a\x07b", "\x9b31m", "\u202egnp.exe", "\x00", "a\rb", ":smile:"]


@pytest.mark.parametrize("text", ODD)
def test_nothing_is_obeyed_and_nothing_vanishes(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    written = io.StringIO()
    monkeypatch.setattr(terminal, "out", Console(file=written, width=200))
    table = terminal.Table(text, title=text, caption=text)
    table.add_column(text)
    table.add_row(text, text)
    terminal.out.print(table)
    terminal.say_result(text)
    shown = written.getvalue()
    assert shown.count(printable(text)) == 7
    assert not set(shown) & {"\x1b", "\x07", "\x9b", "\u202e", "\x00", "\r"}


@pytest.mark.parametrize("text", ODD)
def test_what_is_said_is_text_too(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    written = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=written, width=200))
    with progress.shown():
        progress.say(text)
        logging.getLogger("demeanor").warning("%s", text)
    assert written.getvalue() == f"{printable(text)}\n" * 2


def test_breaks_and_tabs_stay() -> None:
    assert printable("a\nb\tc\r\nd \u043f\u0440 \U0001f600") == "a\nb\tc\nd \u043f\u0440 \U0001f600"
    assert printable("\x1b[31m") == "\\x1b[31m"
