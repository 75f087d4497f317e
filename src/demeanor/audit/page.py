"""An audit as a page: the verdict, the strength in every layer as a picture, and the table."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go

from ..report.html import COLOURS, figure_html, page_html, styled
from .audited import Audit
from .verdict import notes, rows, verdict

HEADINGS = ("layer", "role", "matrices", "strength", "change of the weight")
ROLES = {"embed": COLOURS["neutral"], "attn": COLOURS["lacks"], "mlp": COLOURS["shows"]}


def audit_page(found: Audit) -> str:
    """The page as HTML; what draws its figures lies beside it (`report.html.beside_page`)."""
    head = "".join(f"<th>{escape(name)}</th>" for name in HEADINGS)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows(found))
    sections = [
        f"<h1>{escape(f'{found.edited}, made of {found.base}')}</h1><p class='result'>{escape(verdict(found))}</p>",
        *(f"<p>{escape(note)}</p>" for note in notes(found)),
        "<h2>Strength by layer</h2>", figure_html(strengths(found)),
        "<h2>Size of the change by layer</h2>", figure_html(changes(found)),
        f"<h2>Writers</h2><div class='scroll'><table class='figures'><tr>{head}</tr>{body}</table></div>",
    ]  # fmt: skip
    return page_html("Audit", sections)


def strengths(found: Audit) -> go.Figure:
    """How strongly the directions were taken out of every matrix: 1 is removed, 0 untouched, 2 inverted."""
    figure = _by_layer(found, "value", "strength")
    for at, name in ((0, "untouched"), (1, "removed"), (2, "inverted")):
        figure.add_hline(y=at, line_dash="dot", line_color="#999", annotation_text=name, annotation_position="bottom right")
    return styled(figure, 360)


def changes(found: Audit) -> go.Figure:
    """How large the whole change of every matrix is, in units of the matrix."""
    return styled(_by_layer(found, "relative", "size of the change / size of the weight"), 320)


def _by_layer(found: Audit, field: str, title: str) -> go.Figure:
    figure = go.Figure()
    for role, colour in ROLES.items():
        some = [one for one in found.strengths if one.role == role]
        if some:
            figure.add_scatter(
                x=[one.layer for one in some], y=[getattr(one, field) for one in some], mode="markers", name=role, text=[escape(one.pair.where) for one in some],
                hovertemplate="%{text}<br>%{y:.3f}<extra></extra>", marker={"color": colour, "size": 9},
            )  # fmt: skip
    figure.update_layout(xaxis_title="layer (-1: embedding)", yaxis_title=title)
    return figure
