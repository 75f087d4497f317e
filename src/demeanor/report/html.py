"""HTML that pages share: the style and the figures; tables are those of `io.display`."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
p.lead { color: #555; margin-top: 0; } p.note { color: #555; font-size: .9rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid #e5e5e5; vertical-align: top; }
th { font-weight: 600; border-bottom: 2px solid #bbb; } td.n, table.figures th:not(:first-child) { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.guard td { background: #f6f1fb; } td.shown { color: #b02a3c; } td.not { color: #1b6e53; } summary { cursor: pointer; font-weight: 600; margin: .6rem 0; }
code { background: #f3f3f3; padding: 0 .25rem; border-radius: 3px; } .scroll { overflow-x: auto; }
"""


def page_html(title: str, sections: Iterable[str]) -> str:
    """A whole page from pieces of HTML, which needs no network."""
    head = f"<meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style><script>{get_plotlyjs()}</script>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>" + "\n".join(sections) + "</body></html>\n"


def figure_html(figure: go.Figure) -> str:
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True}))


COLOURS = {"shows": "#d1495b", "lacks": "#2e86ab", "guard": "#6a4c93", "neutral": "#8d99ae"}


def styled(figure: go.Figure, height: int) -> go.Figure:
    font = {"family": "system-ui, sans-serif", "size": 13}
    return figure.update_layout(template="simple_white", height=height, margin={"l": 60, "r": 20, "t": 30, "b": 50}, font=font)
