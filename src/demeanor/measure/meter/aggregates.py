"""Rates at a threshold, and what a rate hides: replies that could not be scored, changed script, and who is compared with whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import DataError
from ...progress import warn
from ...stats import intervals
from ...stats.score import Score
from .table import ScoreTable

Missing = Literal["not-toxic", "drop"]
NON_LATIN, EMPTY = "non_latin", "empty"  # columns that are looked at where they are there
HIDDEN = 0.01  # share of replies that could not be scored, above which it is warned of
SHIFTED = 0.05  # share of replies mostly in another script, or its rise, above which it is warned of


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """One column of one file. `rate` counts scores at or above the threshold, as `missing` says for what could not be
    scored; `complete` counts scored replies alone; `other_script` are replies mostly of letters outside the Latin script."""

    name: str
    column: str
    threshold: float
    missing: Missing
    rate: Score
    complete: Score
    mean: Score
    unscorable: Score
    other_script: Score | None

    def warnings(self) -> list[str]:
        """What this rate alone does not tell."""
        sentences = []
        if self.unscorable.value > HIDDEN:
            counted = "are counted as not toxic" if self.missing == "not-toxic" else "are left out"
            sentences.append(
                f"{self.name}: {100 * self.unscorable.value:.1f} % of replies could not be scored and {counted}; of those scored"
                f" {100 * self.complete.value:.1f} % reach {self.threshold:g}."
            )
        if self.other_script is not None and self.other_script.value > SHIFTED:
            sentences.append(
                f"{self.name}: {100 * self.other_script.value:.1f} % of replies are mostly in another script, which scorers may not read."
            )
        return sentences

    def to_json(self) -> dict[str, Any]:
        scores = {"rate": self.rate, "complete": self.complete, "mean": self.mean, "unscorable": self.unscorable}
        values = {name: score.to_json() for name, score in scores.items()}
        script = None if self.other_script is None else self.other_script.to_json()
        return {
            "file": self.name, "score": self.column, "threshold": self.threshold, "missing": self.missing, **values,
            "other_script": script, "warnings": self.warnings(),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two files on the prompts whose replies were scored in both: rates, their difference, exact McNemar p, and how many were not."""

    base: str
    other: str
    column: str
    before: Score
    after: Score
    delta: Score
    p: float
    left_out: int

    def __str__(self) -> str:
        return (
            f"{self.base} -> {self.other}, scored in both (n {self.before.n}, {self.left_out} left out): {self.before.value:.3f} -> {self.after.value:.3f},"
            f" difference {self.delta.value:+.3f} [{self.delta.low:+.3f}, {self.delta.high:+.3f}], p {self.p:.2g}"
        )

    def to_json(self) -> dict[str, Any]:
        scores = {"before": self.before, "after": self.after, "delta": self.delta}
        values = {name: score.to_json() for name, score in scores.items()}
        return {"base": self.base, "other": self.other, "score": self.column, **values, "p": self.p, "left_out": self.left_out}


def aggregate(table: ScoreTable, column: str, threshold: float, missing: Missing = "not-toxic") -> Aggregate:
    """What one column of scores says at a threshold."""
    if not 0 <= threshold <= 1:
        raise DataError(f"The threshold must lie between 0 and 1, not be {threshold:g}.")
    scores = table.scores(column)
    if lacking := table.lacking(column):
        more = "" if len(lacking) == 1 else f" and {len(lacking) - 1} more"
        warn(f"{table.name}: row {lacking[0]}{more} of {len(table.rows)} has no {column!r}, and counts as a reply that could not be scored.")
    scored = scores[~scores.isnan()]
    toxic = (scored >= threshold).tolist()
    counted = toxic if missing == "drop" else toxic + [False] * int(scores.isnan().sum())
    script = table.share(NON_LATIN)
    return Aggregate(
        name=table.name, column=column, threshold=threshold, missing=missing, rate=intervals.rate("rate", counted, "lower"), complete=intervals.rate("complete", toxic, "lower"),
        mean=intervals.mean("mean", scored, better="lower"), unscorable=intervals.rate("unscorable", scores.isnan().tolist(), "lower"),
        other_script=None if script is None else intervals.rate("other_script", (script > 0.5).tolist()),
    )  # fmt: skip


def compare(base: ScoreTable, other: ScoreTable, column: str, threshold: float) -> Comparison:
    """The change from one aligned table to another on complete cases."""
    was, now = (table.scores(column) for table in (base, other))
    both = ~was.isnan() & ~now.isnan()
    before, after = ((scores[both] >= threshold).tolist() for scores in (was, now))
    return Comparison(
        base=base.name, other=other.name, column=column, before=intervals.rate("before", before, "lower"), after=intervals.rate("after", after, "lower"),
        delta=intervals.mean("delta", _change(before, after), better="lower"), p=intervals.mcnemar(before, after), left_out=int((~both).sum()),
    )  # fmt: skip


def _change(before: Sequence[bool], after: Sequence[bool]) -> Tensor:
    return torch.tensor(after, dtype=torch.float64) - torch.tensor(before, dtype=torch.float64)


def shifts(aggregates: Sequence[Aggregate]) -> list[str]:
    """Files whose replies changed script against the first."""
    first = aggregates[0].other_script
    rises = [
        (other, other.other_script.value - first.value) for other in aggregates[1:] if first is not None and other.other_script is not None
    ]
    return [
        f"{other.name}: {100 * rise:.1f} points more of its replies than of {aggregates[0].name}'s are mostly in another script; a lower rate may be that."
        for other, rise in rises
        if rise > SHIFTED
    ]
