"""Scores of tasks with intervals, pooled over groups, and what became of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...stats import intervals
from ...stats.score import Better, Score

HEADLINES = ("acc_norm", "exact_match", "acc")  # the metric that stands for a task which has several
REPEATS = 1_000  # resamplings where a task has a metric of its own, which can be slow


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One metric of one task or group.

    samples: what the task made of each question, in order; `whole` makes the metric of them where it is no mean.
    weights: of the samples, where a group gives every task the same say.
    """

    task: str
    metric: str
    filter: str
    shots: int | None
    better: Better
    samples: tuple[Any, ...]
    whole: Callable[[Sequence[Any]], float] | None = None
    weights: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        return f"{self.task} {self.metric}" + ("" if self.filter == "none" else f" ({self.filter})")

    @property
    def values(self) -> Tensor:
        """[sample], of a metric that is a mean."""
        return torch.tensor([float(sample) for sample in self.samples], dtype=torch.float64)

    @property
    def yes_or_no(self) -> bool:
        return self.whole is None and self.weights is None and set(self.samples) <= {0, 1}

    @property
    def share(self) -> bool:
        """Whether the metric can be told in percent."""
        return self.whole is None and all(0 <= sample <= 1 for sample in self.samples)

    @cached_property
    def score(self) -> Score:
        if self.yes_or_no:
            return intervals.rate(self.name, [bool(sample) for sample in self.samples], self.better)
        if self.whole is None:
            return intervals.mean(self.name, self.values, self._weights, self.better)
        low, high = _resampled(len(self.samples), lambda rows: _of(self, rows))
        return Score(self.name, float(self.whole(self.samples)), low, high, len(self.samples), self.better)

    @property
    def _weights(self) -> Tensor | None:
        return None if self.weights is None else torch.tensor(self.weights, dtype=torch.float64)


@dataclass(frozen=True)
class Change:
    """A metric before and after, the difference with its paired bootstrap interval, and McNemar's exact p of yes-or-no metrics."""

    before: TaskScore
    after: TaskScore

    @property
    def name(self) -> str:
        return self.after.name

    @cached_property
    def delta(self) -> Score:
        was, now = self.before, self.after
        if now.whole is None:
            return intervals.mean(self.name, now.values - was.values, now._weights, now.better)
        low, high = _resampled(len(now.samples), lambda rows: _of(now, rows) - _of(was, rows))
        return Score(self.name, now.score.value - was.score.value, low, high, len(now.samples), now.better)

    @property
    def p(self) -> float | None:
        if not (self.before.yes_or_no and self.after.yes_or_no):
            return None
        return intervals.mcnemar([bool(s) for s in self.before.samples], [bool(s) for s in self.after.samples])

    def to_json(self) -> dict[str, Any]:
        now = self.after
        scores = {"before": self.before.score.to_json(), "after": now.score.to_json(), "delta": {**self.delta.to_json(), "p": self.p}}
        return {"task": now.task, "metric": now.metric, "filter": now.filter, "shots": now.shots, "better": now.better, **scores}


def pooled(group: str, scores: Sequence[TaskScore], by_size: bool) -> TaskScore:
    """One metric of all of a group's tasks: over all questions, or with the same say for every task."""
    weights = None if by_size else tuple(1 / len(score.samples) for score in scores for _ in score.samples)
    samples = tuple(sample for score in scores for sample in score.samples)
    shots = {score.shots for score in scores}
    first = scores[0]
    return TaskScore(
        task=group,
        metric=first.metric,
        filter=first.filter,
        shots=shots.pop() if len(shots) == 1 else None,
        better=first.better,
        samples=samples,
        whole=None,
        weights=weights,
    )


def headline(scores: Sequence[TaskScore]) -> TaskScore:
    """The one that stands for a task: lm-eval's first, unless it has one that people compare."""
    return next((score for metric in HEADLINES for score in scores if score.metric == metric), scores[0])


def is_mean(samples: Sequence[Any], value: float) -> bool:
    """Whether a metric is the mean of what was made of each question."""
    plain = all(isinstance(sample, (int, float, np.integer, np.floating, np.bool_)) for sample in samples)
    return plain and abs(sum(map(float, samples)) / len(samples) - value) < 1e-9


def direction(higher: bool | None) -> Better:
    choices: dict[bool | None, Literal["higher", "lower", "neither"]] = {True: "higher", False: "lower", None: "neither"}
    return choices[higher]


def _of(score: TaskScore, rows: Sequence[int]) -> float:
    assert score.whole is not None
    return float(score.whole([score.samples[row] for row in rows]))


def _resampled(n: int, of: Callable[[Sequence[int]], float]) -> tuple[float, float]:
    """Percentile interval of what `of` makes of resampled rows."""
    rng = np.random.default_rng(0)
    values = [of(rng.integers(0, n, n).tolist()) for _ in range(REPEATS)]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
