"""What is printed: names and replies are text, never markup, and hold nothing that a terminal obeys. JSON stays exact."""

from __future__ import annotations

from typing import Any

import rich.table
from rich.console import Console, RenderableType
from rich.text import Text

from ..progress import printable

out = Console()


class Table(rich.table.Table):
    """A table whose title, headings and cells are what they say."""

    def __init__(self, *headings: str, title: str = "", caption: str = "", **more: Any) -> None:
        super().__init__(title=_text(title, "table.title") or None, caption=_text(caption, "table.caption") or None, **more)
        for heading in headings:
            self.add_column(heading)

    def add_column(self, header: RenderableType = "", *rest: Any, **more: Any) -> None:
        super().add_column(_text(header), *rest, **more)

    def add_row(self, *cells: RenderableType | None, **more: Any) -> None:
        super().add_row(*(_text(cell) for cell in cells), **more)


def _text(value: Any, style: str = "") -> Any:
    return Text(printable(value), style=style) if isinstance(value, str) else value


def say_result(sentence: object) -> None:
    """A sentence on standard output, whole however narrow the terminal is."""
    out.print(printable(str(sentence)), highlight=False, soft_wrap=True, markup=False, emoji=False)
