"""How values are shown: short texts, and tables in HTML. All that is not a number is escaped, and stays the text that it is."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape

LONGEST = 60  # characters of a name or a prompt in one line
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = LONGEST


def brief(text: object, longest: int = LONGEST) -> str:
    """A text in one line of at most `longest` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}\u2026"


def shown(value: object, longest: int = LONGEST) -> str:
    """A value of the user's as a message shows it: its beginning, whatever it holds and however deep."""
    return brief(_SHORT.repr(value), longest)


def table_html(headings: Iterable[str], body: Iterable[tuple[str, Iterable[tuple[str, str]]]], kind: str = "figures") -> str:
    """body: (row class, cells), a cell being (cell class, text)."""
    head = "".join(f"<th>{escape(text)}</th>" for text in headings)
    lines = (
        f"<tr class='{row_class}'>" + "".join(f"<td class='{cell}'>{escape(text)}</td>" for cell, text in cells) + "</tr>"
        for row_class, cells in body
    )
    return f"<div class='scroll'><table class='{kind}'><tr>{head}</tr>{''.join(lines)}</table></div>"


def object_html(
    title: str, facts: Mapping[str, object], headings: Sequence[str] = (), rows: Iterable[Sequence[object]] = (), note: str = ""
) -> str:
    """An object in a notebook: what it is, a line of facts, and a table where it has rows. Nothing in it is taken for mathematics."""
    summary = "; ".join(f"{escape(name)} {escape(str(value))}" for name, value in facts.items())
    table = table_html(headings, [("", [("", str(cell)) for cell in row]) for row in rows]) if headings else ""
    lines = [
        f"<strong>{escape(title)}</strong>",
        f"<div>{summary}</div>" if summary else "",
        table,
        f"<div>{escape(note)}</div>" if note else "",
    ]
    return f"<div class='demeanor tex2jax_ignore mathjax_ignore'>{''.join(lines)}</div>"
