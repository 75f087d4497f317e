"""The front of a search, for the terminal."""

from __future__ import annotations

from ..search.searching import Searched
from .terminal import Table


def front_table(result: Searched) -> Table:
    """A row per point of the front, confirmed with whole replies on val."""
    table = Table(title="The front: val split, whole replies", title_justify="left")
    for heading in ("", "left", "shows", "guard", "right", "drift", "setting"):
        table.add_column(heading, justify="left" if heading in ("", "setting") else "right")
    for number, point in enumerate(result.front.points):
        values = point.values
        shares = ("none" if (value := values[name]) is None else f"{100 * value:.1f}%" for name in ("left", "shows", "guard", "answers"))
        table.add_row(f"{number}{' *' if number == result.pick else ''}", *shares, f"{values['drift'] or 0:.4f}", point.name, style="bold" if number == result.pick else None)
    table.caption, table.caption_justify = "* picked; left: replies to shows that are no use; each point is a file in front/", "left"
    return table
