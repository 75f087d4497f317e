"""The report of a search: the front, what its points did, which axes matter, and the picked point before and after."""

from __future__ import annotations

from html import escape
from pathlib import Path

import plotly.graph_objects as go

from ..io.display import table_html
from ..job.page import scores_html
from ..report.html import COLOURS, figure_html, page_html, styled, write_page
from ..report.sentence import in_words
from .confirming import Confirmed
from .searching import Searched, told
from .space import Params

COST_NAMES = {"left": "what is left", "drift": "drift", "guard_lost": "what the guard loses"}
LEAST = 1e-5  # nats: a logarithmic axis has no 0


def write_report(result: Searched, path: Path) -> None:
    """Write the report of a finished search."""
    write_page(path, _page(result))


def _page(result: Searched) -> str:
    title = f"{result.plan.model}: {result.behaviour.name}, searched"
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(result.behaviour.description)}</p>',
        *(f'<p class="result">{escape(sentence)}</p>' for sentence in in_words(result.measurement, result.behaviour)),
        *(f"<p>{escape(sentence)}</p>" for sentence in told(result)),
        "<h2>The front</h2>",
        '<p class="note">Every trial by its quick values (small marks; hollow where it was beaten on the first prompts), and the confirmed ones by whole replies on val. '
        "Left and low is better; colour is what the guard keeps. Hover for the setting.</p>",
        figure_html(trade_offs(result)),
        _points(result),
        "<h2>What changed</h2>",
        scores_html(result.measurement),
        f"<p class='note'>The picked point on the test split, which nothing else of the search has seen. {escape(str(result.picked.control))}.</p>",
        "<h2>Which axes matter</h2>",
        figure_html(importance(result)) if any(result.importance.values()) else "<p>Too few trials to tell.</p>",
        "<h2>How this was made</h2>",
        f"<p>Every point of the front is a control file in <code>front/</code>. The study is {escape(result.storage)}: <code>optuna-dashboard</code> shows it. "
        "Replay: <code>demeanor search --plan plan.yaml -o NEW</code>.</p>",
    ]
    return page_html(title, sections)


def _points(result: Searched) -> str:
    def cells(number: int, point: Confirmed) -> list[tuple[str, str]]:
        values = point.values
        shares = ["none" if (value := values[name]) is None else f"{100 * value:.1f} %" for name in ("left", "shows", "guard", "answers")]
        return [("", f"{number}{' (picked)' if number == result.pick else ''}"), ("", point.name), *(("n", share) for share in shares), ("n", f"{values['drift'] or 0:.4f}")]

    rows = [("guard" if number == result.pick else "", cells(number, point)) for number, point in enumerate(result.front.points)]
    return table_html(("point", "setting", "left", "shows", "guard", "right answers", "drift"), rows)


def trade_offs(result: Searched) -> go.Figure:
    """Drift against what is left, of every trial and of the confirmed ones."""
    figure = go.Figure()
    for whole, name in ((False, "beaten early"), (True, "trials")):
        some = [trial for trial in result.trials if trial.quick.whole == whole]
        figure.add_scatter(
            x=[max(LEAST, trial.quick.drift) for trial in some], y=[100 * trial.quick.left for trial in some], mode="markers", name=name, hoverinfo="text",
            text=[f"trial {trial.number}<br>{_setting(trial.params)}" for trial in some],
            marker={"size": 6, "symbol": "circle" if whole else "circle-open", "color": [trial.quick.guard if trial.quick.guard is not None else 1.0 for trial in some],
                    "colorscale": "Cividis", "cmin": 0, "cmax": 1, "showscale": whole, "colorbar": {"title": "guard"}},
        )  # fmt: skip
    points = result.front.points
    figure.add_scatter(
        x=[max(LEAST, point.values["drift"] or 0) for point in points], y=[100 * (point.values["left"] or 0) for point in points], mode="markers+text", name="front, whole replies",
        text=[str(number) for number in range(len(points))], textposition="top center", hovertext=[point.name for point in points], hoverinfo="text",
        marker={"size": 13, "symbol": "diamond", "color": COLOURS["shows"], "line": {"width": [3 if n == result.pick else 1 for n in range(len(points))]}},
    )  # fmt: skip
    figure.update_layout(xaxis_title="drift (nats per token)", yaxis_title="% of shows left", xaxis_type="log")
    return styled(figure, 460)


def _setting(params: Params) -> str:
    return "<br>".join(f"{escape(name)} {escape(str(value))}" for name, value in params.items())


def importance(result: Searched) -> go.Figure:
    """Per axis of the space, how much of each cost's spread it explains."""
    figure = go.Figure()
    for cost, shares in result.importance.items():
        names = list(shares)[::-1]
        figure.add_bar(x=[shares[name] for name in names], y=names, name=COST_NAMES[cost], orientation="h")
    figure.update_layout(barmode="group", xaxis_title="share explained (PED-ANOVA)")
    return styled(figure, 380)
