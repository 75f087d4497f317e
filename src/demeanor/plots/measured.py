"""Scores as bars with their intervals: one measurement before and after, or several ways beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from ..measure import Measurement
from ..report.html import styled
from ..report.scores import MEANING, PLAIN
from ..stats.score import Score

UNTOUCHED = "untouched"
HUES = ("#bbbbbb", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")  # untouched first (Okabe and Ito, 2008)


def before_and_after(measured: Measurement) -> go.Figure:
    """Every rate of a measurement before and after, in percent, with intervals of 95 %."""
    return _bars({"before": measured.before, "after": measured.after})


def side_by_side(ways: Mapping[str, Measurement]) -> go.Figure:
    """What each way leaves, beside the untouched model of the first."""
    first = next(iter(ways.values()))
    return _bars({UNTOUCHED: first.before} | {name: measured.after for name, measured in ways.items()})


def _bars(columns: Mapping[str, Mapping[str, Score]]) -> go.Figure:
    names = [name for name in MEANING if name not in PLAIN and any(scores[name].n for scores in columns.values())]
    figure = go.Figure()
    for number, (title, scores) in enumerate(columns.items()):
        some = [scores[name] for name in names]
        figure.add_bar(
            x=[MEANING[name] for name in names], y=[100 * score.value for score in some], name=title, marker_color=HUES[number % len(HUES)],
            error_y=_intervals(some), customdata=[score.n for score in some], hovertemplate="%{y:.1f} % (n %{customdata})<extra>" + title + "</extra>",
        )  # fmt: skip
    figure.update_layout(barmode="group", yaxis_title="% of prompts", yaxis_range=[0, 104])
    return styled(figure, 400)


def _intervals(scores: Sequence[Score]) -> dict[str, object]:
    above, below = [100 * (score.high - score.value) for score in scores], [100 * (score.value - score.low) for score in scores]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1}
