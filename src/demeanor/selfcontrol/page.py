"""The pictures of SelfControl: where the gradient is, how the score rose, and which way the states went."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

import plotly.graph_objects as go
import torch

from ..io.atomic import new_file
from ..io.display import table_html
from ..report.html import beside_page, figure_html, page_html, styled
from .gradient import NormPattern
from .outcomes import Outcome
from .trace import Traces

LINES = 60  # prompts drawn one by one; more would be a blot
HEATED = "Viridis"


def norm_heat_map(patterns: Mapping[str, NormPattern]) -> go.Figure:
    """Mean |g| of every layer, a column per question, each column in units of its own largest."""
    columns = [pattern.layers / pattern.layers.max().clamp_min(1e-30) for pattern in patterns.values()]
    figure = go.Figure(
        go.Heatmap(z=torch.stack(columns, 1).tolist(), x=list(patterns), colorscale=HEATED, colorbar={"title": "share of largest"})
    )
    figure.update_layout(xaxis_title="question", yaxis_title="layer (resid_post)")
    return styled(figure, 360)


def token_heat_map(values: torch.Tensor, title: str, labels: list[str] | None = None) -> go.Figure:
    """values [layer, token], tokens counted from the prompt's end unless they are named."""
    at = [f"{place - values.shape[1]}" for place in range(values.shape[1])]
    ticks = {} if labels is None else {"tickvals": at, "ticktext": labels}
    figure = go.Figure(go.Heatmap(z=values.tolist(), x=at, colorscale=HEATED, colorbar={"title": title}))
    figure.update_layout(xaxis={"title": "prompt token", "type": "category", **ticks}, yaxis_title="layer (resid_post)")
    return styled(figure, 360)


def score_per_iteration(traces: Traces) -> go.Figure:
    """S of every prompt's reply after each accepted step, and the mean over prompts, which keep their last score."""
    longest = max(len(trace.scores) for trace in traces.traces)
    figure = go.Figure()
    for trace in traces.traces[:LINES]:
        hover = f"{escape(trace.prompt.text)}<br>{escape(trace.reply.text)}"
        figure.add_scatter(
            x=list(range(len(trace.scores))), y=trace.scores, mode="lines", line={"color": "#8d99ae", "width": 1}, opacity=0.5,
            showlegend=False, text=hover, hoverinfo="text+y",
        )  # fmt: skip
    held = torch.tensor([trace.scores + [trace.score] * (longest - len(trace.scores)) for trace in traces.traces])
    figure.add_scatter(
        x=list(range(longest)), y=held.mean(0).tolist(), mode="lines+markers", name="mean", line={"color": "#d1495b", "width": 3}
    )
    figure.update_layout(xaxis={"title": "accepted steps", "dtick": 1}, yaxis_title="suffix score S")
    return styled(figure, 360)


def trajectories(traces: Traces) -> go.Figure:
    """The stream at each prompt's last token, plain and step by step, at two thirds of the depth, in the two components that hold most of the moves."""
    figure = go.Figure()
    drawn = traces.changed[:LINES]
    if drawn:
        layer = round(2 * (drawn[0].path.shape[1] - 1) / 3)
        paths = [trace.path[:, layer] for trace in drawn]
        moves = torch.cat([path[1:] - path[:-1] for path in paths])
        _, _, axes = torch.linalg.svd(moves, full_matrices=False)
        axes = torch.nn.functional.pad(axes[:2], (0, 0, 0, 2 - len(axes[:2])))  # a single move spans one component
        for trace, path in zip(drawn, paths):
            x, y = (path @ axes.T).T.tolist()
            figure.add_scatter(
                x=x, y=y, mode="lines+markers", showlegend=False, text=escape(trace.prompt.text), hoverinfo="text",
                line={"width": 1}, marker={"size": [5] * (len(x) - 1) + [11], "symbol": ["circle"] * (len(x) - 1) + ["diamond"]},
            )  # fmt: skip
    figure.update_layout(xaxis_title="first component", yaxis_title="second component")
    return styled(figure, 420)


def write_selfcontrol_page(
    traces: Traces, result: Outcome, title: str, path: Path, patterns: Mapping[str, NormPattern], tokens: list[str] | None = None
) -> None:
    """One HTML file that needs no network; `tokens` name the places of the first prompt that changed."""
    changes = [
        ("", [("", name), ("n", str(before)), ("n", str(result.after[name])), ("n", f"{result.delta[name].value:+.3f}")])
        for name, before in result.before.items()
        if before.n
    ]
    sections = [
        "<h2>What changed</h2>",
        table_html(("", "before", "after", "change"), changes),
        '<p class="note">The suffix score is what was searched for: it is shown beside the detector and the answers, never instead of them.</p>',
        "<h2>The score, step by step</h2>", figure_html(score_per_iteration(traces)),
        "<h2>Where the gradient is</h2>", figure_html(norm_heat_map(patterns)),
        *(f"<h3>{escape(name)}</h3>{figure_html(token_heat_map(pattern.tokens, '|g|'))}" for name, pattern in patterns.items()),
        *_one_prompt(traces, tokens),
        "<h2>Which way the states went</h2>", figure_html(trajectories(traces)),
        "<h2>Replies before and after</h2>", _replies(traces),
    ]  # fmt: skip
    _write_page(title, sections, path)


def write_norms_page(patterns: Mapping[str, NormPattern], title: str, path: Path) -> None:
    """The heat map of layers and questions, and one of tokens per question."""
    tokens = (f"<h2>{escape(name)}</h2>{figure_html(token_heat_map(pattern.tokens, '|g|'))}" for name, pattern in patterns.items())
    _write_page(title, ["<h2>Layers</h2>", figure_html(norm_heat_map(patterns)), *tokens], path)


def _write_page(title: str, sections: list[str], path: Path) -> None:
    with new_file(path) as work:
        work.write_text(page_html(title, [f"<h1>{escape(title)}</h1>", *sections]), encoding="utf-8")
    beside_page(path)


def _one_prompt(traces: Traces, tokens: list[str] | None) -> list[str]:
    if not traces.changed:
        return []
    trace = traces.changed[0]
    share = trace.added.norm(dim=-1) / trace.norms.clamp_min(1e-12)
    return [
        f"<h2>What was added to one prompt: {escape(trace.prompt.text)}</h2>",
        figure_html(token_heat_map(share, "|added| / |h|", tokens)),
    ]


def _replies(found: Traces) -> str:
    rows = [
        ("", [("", trace.prompt.text), ("", trace.plain.text), ("n", f"{trace.plain_score:.3f}"), ("", trace.reply.text), ("n", f"{trace.score:.3f}")])
        for trace in found.traces[:LINES]
    ]  # fmt: skip
    return table_html(("prompt", "plain", "S", "controlled", "S"), rows, "replies")
