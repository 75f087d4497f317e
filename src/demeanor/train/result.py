"""What comes out of a training: the model, and what was measured before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..behaviours import Detect, Prompt
from ..detect import make_detector, present
from ..measure import Measurement, Observation
from ..measure.changed import Changed
from ..measure.on_topic import on_topic
from ..models import Reply, Session
from ..stats import intervals
from ..stats.score import Score
from .plans import Training

BEFORE, AFTER = "before", "after"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished training. `measurements` by stage, each against the first one; none without a behaviour.

    `replies`: per stage, which share of the replies to `shows` exhibits the behaviour, refuses, is off topic, and
    engages: does none of the three. `changed` is against the model that was trained, `since_base` against the one before its edit.
    """

    plan: Training
    folder: Path
    steps: int
    resumed_from: int | None
    measurements: Mapping[str, Measurement]
    changed: Changed | None
    replies: Mapping[str, Mapping[str, Score]]
    data: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]
    seconds: float
    stopped: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    since_base: Changed | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "recipe": type(self.plan).__name__.lower(), "model": self.plan.model, "steps": self.steps, "resumed_from": self.resumed_from,
            "stopped": self.stopped, "data": dict(self.data),
            "measurements": {name: measurement.to_json() for name, measurement in self.measurements.items()},
            "replies": {stage: {name: score.to_json() for name, score in scores.items()} for stage, scores in self.replies.items()},
            "changed": None if self.changed is None else self.changed.to_json(),
            "changed_since_base": None if self.since_base is None else self.since_base.to_json(),
            **self.extra, "log": list(self.log), "seconds": self.seconds,
        }  # fmt: skip


def replies_of(judge: Session, seen: Observation) -> dict[str, Score]:
    """What the replies to `shows` are; `judge` is the untouched model, which tells what is on topic."""
    outcomes = seen.sets["shows"]
    prompts: list[Prompt] = [outcome.prompt for outcome in outcomes]
    replies: list[Reply] = [outcome.reply for outcome in outcomes]
    refused = present(make_detector(Detect(name="refusal")), [reply.text for reply in replies], prompts) if outcomes else []
    ids = [[token for token in reply.ids if token not in judge.end_ids] for reply in replies]
    topical = (on_topic(judge, prompts, ids) if outcomes else None) or [True] * len(outcomes)
    shown = [outcome.shown for outcome in outcomes]
    engaging = [not (one or two) and three for one, two, three in zip(shown, refused, topical)]
    return {
        "exhibits": intervals.rate("exhibits", shown, "lower"),
        "refuses": intervals.rate("refuses", refused),
        "off_topic": intervals.rate("off_topic", [not relevant for relevant in topical], "lower"),
        "engages": intervals.rate("engages", engaging, "higher"),
    }
