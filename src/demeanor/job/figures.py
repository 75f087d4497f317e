"""The pictures of a report: where the classes separate, what selection saw, how the classes project."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from ..behaviours import SET_NAMES, Prompt
from ..calibrate.dial import Dial
from ..controls import Candidate, Gate
from ..measure.ledger import Ledger
from ..report.html import COLOURS, styled
from ..runtime.positions import REPLY
from .result import Run

SYMBOLS = ("circle", "diamond", "x", "square", "cross", "star")  # of the estimators, in the order in which they were tried


def separation(result: Run) -> go.Figure:
    """Held-out d' of the mean difference per layer, a line per template position."""
    values = result.found.separation
    figure = go.Figure()
    for row, line in enumerate(values):
        position = row - len(values)
        figure.add_scatter(x=list(range(len(line))), y=line.tolist(), mode="lines+markers", name=f"position {position}")
    figure.add_vline(x=result.direction.site.layer, line_dash="dot", line_color="#555", annotation_text="chosen")
    figure.update_layout(xaxis_title="layer (resid_post)", yaxis_title="separation d', held out")
    return styled(figure, 340)


def selection(result: Run) -> go.Figure:
    """Every candidate of a run."""
    return candidates(result.found.candidates)


def candidates(tried: Sequence[Candidate]) -> go.Figure:
    """Every candidate: bypass against layer; what was discarded is hollow, and hovering says why."""
    figure = go.Figure()
    for estimator, symbol in zip(dict.fromkeys(c.estimator for c in tried), cycle(SYMBOLS)):
        for discarded in (False, True):
            some = [c for c in tried if c.estimator == estimator and bool(c.discarded) == discarded]
            if some:
                figure.add_scatter(
                    x=[c.site.layer + 0.08 * (0 if c.site.position == REPLY else c.site.position + 1) for c in some], y=[c.bypass for c in some], mode="markers",
                    name=f"{estimator}{' (discarded)' if discarded else ''}", text=[_told(c) for c in some], hoverinfo="text",
                    marker={"symbol": f"{symbol}-open" if discarded else symbol, "size": 10, "line": {"width": 1.5}},
                )  # fmt: skip
    figure.update_layout(xaxis_title="layer", yaxis_title="bypass (log-odds)")
    return styled(figure, 380)


def _told(candidate: Candidate) -> str:
    return (
        f"{candidate.estimator}, {candidate.site}<br>bypass {candidate.bypass:.2f}, induce {candidate.induce:.2f}, KL {candidate.kl:.4f}"
        f"<br>AUROC {candidate.auroc:.3f}, d' {candidate.separation:.1f}<br>{', '.join(candidate.discarded) or 'kept'}"
    )


CURVES = {
    "shows_rate": ("shows: exhibited", COLOURS["shows"], "solid"), "lacks_rate": ("lacks: exhibited", COLOURS["lacks"], "solid"),
    "guard_rate": ("guard: exhibited", COLOURS["guard"], "solid"), "answers_shows": ("shows: right answers", COLOURS["shows"], "dot"),
    "answers_neutral": ("neutral: right answers", COLOURS["neutral"], "dot"),
}  # fmt: skip


def dose_response(dial: Dial) -> go.Figure:
    """What every dose of the dial did on the test split, with 95 % intervals."""
    figure = go.Figure()
    at = [step.dose for step in dial.steps]
    for name, (title, colour, dash) in CURVES.items():
        scores = [step.scores[name] for step in dial.steps]
        if scores[0].n:
            bars = {
                "array": [100 * (s.high - s.value) for s in scores],
                "arrayminus": [100 * (s.value - s.low) for s in scores],
                "thickness": 1,
            }
            figure.add_scatter(
                x=at, y=[100 * s.value for s in scores], mode="lines+markers", name=title,
                line={"color": colour, "dash": dash}, error_y={"type": "data", "symmetric": False, **bars},
            )  # fmt: skip
    figure.add_vline(x=0, line_dash="dot", line_color="#555", annotation_text="untouched", annotation_position="bottom right")
    figure.update_layout(xaxis_title="dose (1 = the gap between the classes)", yaxis_title="% of prompts", yaxis_range=[-3, 103])
    return styled(figure, 400)


def projections(result: Run, ledger: Ledger) -> go.Figure:
    """Histograms of the test prompts of every set along the direction, and along the gate's probe where there is one."""
    gate = result.decision.chosen.gate
    titles = [f"along the direction ({result.direction.site})"] + ([f"gate: fires right of 0 ({gate.site})"] if gate else [])
    figure = make_subplots(rows=len(titles), cols=1, subplot_titles=titles, vertical_spacing=0.22)  # under one another: half a telephone is too narrow
    for name in SET_NAMES:
        prompts = result.behaviour.set(name, "test", result.plan.max_prompts)
        if not prompts or (result.direction.site.position == REPLY and any(prompt.reply is None for prompt in prompts)):
            continue  # a direction read over replies has nothing to read where none are given
        values = ledger.capture(prompts, [result.direction.site], result.direction.after).values[:, 0] @ result.direction.basis[0]
        _histogram(figure, values.tolist(), name, 1)
        if gate:
            _histogram(figure, _margins(ledger, gate, prompts), name, 2)
    if gate:
        figure.add_vline(x=0, line_dash="dot", line_color="#555", row=2, col=1)
    figure.update_layout(barmode="overlay")
    return styled(figure, 300 * len(titles))


def roc(gate: Gate) -> go.Figure:
    """What the gate fires on as its thresholds move together, on prompts that its probes were not fitted on."""
    figure = go.Figure()
    false, hits = zip(*gate.roc)
    figure.add_scatter(x=false, y=hits, mode="lines", name=f"{gate.kind}s, held out", line={"color": COLOURS["shows"]})
    figure.add_scatter(
        x=[gate.false_positives], y=[gate.hits], mode="markers", name="chosen", marker={"color": COLOURS["guard"], "size": 10}
    )
    figure.update_layout(xaxis_title=f"fires on {' or '.join(gate.against)}", yaxis_title="fires on shows", xaxis_range=[-0.02, 1.02])
    return styled(figure, 340)


def _margins(ledger: Ledger, gate: Gate, prompts: Sequence[Prompt]) -> list[float]:
    values: torch.Tensor = gate.margin(ledger.capture(prompts, [gate.site]).values[:, 0])
    return [float(value) for value in values]


def _histogram(figure: go.Figure, values: list[float], name: str, row: int) -> None:
    figure.add_histogram(
        x=values, name=name, legendgroup=name, showlegend=row == 1, marker_color=COLOURS[name], opacity=0.6, nbinsx=40, row=row, col=1
    )
