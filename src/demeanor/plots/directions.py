"""Directions as pictures: how alike several are, and where in a text the stream points along one."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go
import torch

from ..controls import Direction
from ..errors import DataError
from ..models.projections import Projections
from ..report.html import styled

BOTH_WAYS = "RdBu"


def cosines(directions: Mapping[str, Direction]) -> go.Figure:
    """Cosines between the first vectors of directions, as a heat map. DataError where they are of models of different widths."""
    vectors = [direction.basis[0].double() for direction in directions.values()]
    if len({len(vector) for vector in vectors}) > 1:
        raise DataError("These directions are of models whose streams have different widths; compare those of one model.")
    values = torch.stack(vectors) @ torch.stack(vectors).T
    names = [f"{name}<br>{direction.site}" for name, direction in directions.items()]
    figure = go.Figure(
        go.Heatmap(
            z=values.tolist(), x=names, y=names, zmin=-1, zmax=1, colorscale=BOTH_WAYS, texttemplate="%{z:.2f}", colorbar={"title": "cosine"}
        )
    )
    figure.update_yaxes(autorange="reversed")
    return styled(figure, 380)


def along_text(seen: Projections) -> go.Figure:
    """The stream's cosine with a direction at every layer and token; a line stands where the reply begins."""
    places = list(range(len(seen.tokens)))
    figure = go.Figure(
        go.Heatmap(z=seen.values.tolist(), x=places, zmin=-1, zmax=1, colorscale=BOTH_WAYS, colorbar={"title": "cosine"})
    )
    figure.add_vline(x=seen.prompt_tokens - 0.5, line_dash="dot", line_color="#555", annotation_text="reply")
    figure.update_layout(xaxis={"title": "token", "tickvals": places, "ticktext": list(seen.tokens)}, yaxis_title="layer (resid_post)")
    return styled(figure, 360)
