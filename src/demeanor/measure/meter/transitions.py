"""Where replies go from one model to another: low, medium and high scores, counted in pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor

from ...errors import DataError
from .table import ScoreTable

LEVELS = ("low", "medium", "high")
COLOURS = ("#2e86ab", "#e9c46a", "#d1495b")


@dataclass(frozen=True, kw_only=True)
class Flows:
    """From one file to another: counts [from level, to level] of the prompts scored in both, and how many were not."""

    base: str
    other: str
    counts: Tensor
    n: int
    left_out: int

    def to_json(self) -> dict[str, Any]:
        rows = {level: dict(zip(LEVELS, row)) for level, row in zip(LEVELS, self.counts.tolist())}
        return {"base": self.base, "other": self.other, "n": self.n, "left_out": self.left_out, "counts": rows}


def flows(base: ScoreTable, others: Sequence[ScoreTable], column: str, low: float, high: float) -> list[Flows]:
    """Counts from the base to each other file: low < `low` <= medium <= `high` < high. The tables are aligned."""
    if not 0 <= low <= high <= 1:
        raise DataError(f"--low and --high must lie between 0 and 1, low first; they are {low:g} and {high:g}.")
    was = base.scores(column)
    between = []
    for other in others:
        now = other.scores(column)
        both = ~was.isnan() & ~now.isnan()
        counts = torch.zeros(3, 3, dtype=torch.long)
        pairs = torch.stack([_levels(was[both], low, high), _levels(now[both], low, high)], 1)
        for start, end in pairs.tolist():
            counts[start, end] += 1
        between.append(Flows(base=base.name, other=other.name, counts=counts, n=int(both.sum()), left_out=int((~both).sum())))
    return between


def _levels(scores: Tensor, low: float, high: float) -> Tensor:
    return (scores >= low).long() + (scores > high).long()


def sankey(between: Sequence[Flows]) -> go.Figure:
    """The flows as a picture; with two of them the base stands in the middle."""
    two = len(between) == 2
    names = [between[0].other, between[0].base, between[1].other] if two else [between[0].base, between[0].other]
    links: dict[str, list[Any]] = {"source": [], "target": [], "value": [], "color": []}
    # Of two, the first flow is drawn backwards, so that both start in the middle.
    drawn = [(between[0].counts.T, 0, 1), (between[1].counts, 1, 2)] if two else [(between[0].counts, 0, 1)]
    for number, (counts, left, right) in enumerate(drawn):
        for start in range(3):
            for end in range(3):
                middle = end if two and number == 0 else start
                links["source"].append(3 * left + start)
                links["target"].append(3 * right + end)
                links["value"].append(int(counts[start, end]))
                links["color"].append(_faint(COLOURS[middle]))
    totals = [sum(value for end, value in zip(links[side], links["value"]) if end == node) for node, side in _nodes(len(names))]
    labels = [f"{name}: {level} ({total})" for (name, level), total in zip(product(names, LEVELS), totals)]
    figure = go.Figure(go.Sankey(node={"label": labels, "color": list(COLOURS) * len(names), "pad": 18}, link=links))
    told = "; ".join(f"{flow.base} to {flow.other}: {flow.n} replies scored in both, {flow.left_out} left out" for flow in between)
    return figure.update_layout(
        title={"text": told.replace("; ", "<br>"), "font": {"size": 13}}, font={"family": "system-ui, sans-serif", "size": 13},
        height=520, margin={"l": 10, "r": 10, "t": 70, "b": 20},
    )  # fmt: skip


def _nodes(columns: int) -> Iterator[tuple[int, str]]:
    """Every node in order, and on which side its links say how many replies it stands for: the last column is only arrived at."""
    for column in range(columns):
        for level in range(len(LEVELS)):
            yield len(LEVELS) * column + level, "source" if column < columns - 1 else "target"


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.35)"
