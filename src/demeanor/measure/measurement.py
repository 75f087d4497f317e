"""Before and after: every score with its interval and n, and what changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..behaviours import Behaviour
from ..behaviours.prompts import Split
from ..controls import Control
from ..errors import DataError
from ..models import Session
from ..stats import intervals
from ..stats.score import Better, Score
from .condition import Condition
from .degeneration import OF_REPLIES
from .drift import Drift, drift
from .observation import Observation, Outcome, observed
from .plan import MeasurePlan

# Every yes-or-no score: its name, which outcomes it counts, and which way is better.
RATES: tuple[tuple[str, Callable[[Observation], list[bool]], Better], ...] = (
    ("shows_rate", lambda o: o.shown("shows"), "lower"),
    ("lacks_rate", lambda o: o.shown("lacks"), "lower"),
    ("guard_rate", lambda o: o.shown("guard"), "higher"),
    ("answers_shows", lambda o: o.right("shows"), "higher"),
    ("answers_neutral", lambda o: o.right("neutral"), "higher"),
    ("answers", lambda o: o.right("shows", "neutral"), "higher"),
)


@dataclass(frozen=True)
class Measurement:
    """Scores before and after a control by name, the change of each with its interval, and the replies behind them.

    `p` holds exact two-sided McNemar p-values of the changed rates; `p_holm` the same adjusted for all the changes of that
    score that were looked at together.
    """

    behaviour: str
    split: str
    before: Mapping[str, Score]
    after: Mapping[str, Score]
    delta: Mapping[str, Score]
    p: Mapping[str, float]
    p_holm: Mapping[str, float]
    observed: tuple[Observation, Observation]

    def to_json(self) -> dict[str, Any]:
        def plain(scores: Mapping[str, Score]) -> dict[str, Any]:
            return {name: score.to_json() for name, score in scores.items()}

        delta = {name: {**score.to_json(), "p": self.p.get(name), "p_holm": self.p_holm.get(name)} for name, score in self.delta.items()}
        return {"behaviour": self.behaviour, "split": self.split, "before": plain(self.before), "after": plain(self.after), "delta": delta}

    def __str__(self) -> str:
        lines = [f"{self.behaviour} ({self.split} split)", f"{'':<16}{'before':<32}after"]
        for name, score in self.after.items():
            shown = (str(self.before[name]), str(score)) if score.n else ("none", "none")
            lines.append(f"{name:<16}{shown[0]:<32}{shown[1]}")
        return "\n".join(lines)


def measure(
    session: Session,
    behaviour: Behaviour,
    control: Control | None = None,
    plan: MeasurePlan | None = None,
    *,
    base: Session | None = None,
    split: Split = "test",
    before: Observation | None = None,
    **options: Any,
) -> Measurement:
    """What a control does to a behaviour, to what must still show it, and to everything else.

    `options` are the fields of `MeasurePlan` by name, in place of a plan. `base` is another model to compare with,
    instead of the untouched `session`. `before` saves running that one again when several controls are compared.
    """
    plan = MeasurePlan.given(plan, options, "measure")
    now = Condition(session, control, plan.prompting)
    ((_, made),) = measure_all(
        Condition(base or session), {"": now}, behaviour, split=split, max_prompts=plan.max_prompts, before=before
    ).items()
    return made


def measure_all(
    was: Condition,
    conditions: Mapping[str, Condition],
    behaviour: Behaviour,
    *,
    split: Split = "test",
    max_prompts: int | None = None,
    before: Observation | None = None,
) -> dict[str, Measurement]:
    """Several conditions, by name, against one and the same: what it says is asked for once."""
    before = before or observed(was, behaviour, split, max_prompts)
    if not any(before.sets.values()):
        raise DataError(f"The behaviour {behaviour.name!r} has no prompts in its {split} split; nothing can be measured.")
    made = {}
    for name, now in conditions.items():
        after = observed(now, behaviour, split, max_prompts) if now != was else before
        made[name] = compare(behaviour.name, split, before, after, drift(was, now, ordinary(before)))
    return dict(zip(made, _together(list(made.values()))))


def _together(made: Sequence[Measurement]) -> list[Measurement]:
    """The measurements with the p-values of each score adjusted over all of them."""
    adjusted = {name: intervals.holm([each.p[name] for each in made]) for name in made[0].p}
    return [replace(each, p_holm={name: values[number] for name, values in adjusted.items()}) for number, each in enumerate(made)]


def ordinary(seen: Observation) -> tuple[Outcome, ...]:
    """Replies on which nothing should change: to `neutral`, or to `lacks` where there is no such set."""
    return seen.sets["neutral"] or seen.sets["lacks"]


def compare(behaviour: str, split: str, before: Observation, after: Observation, moved: Drift) -> Measurement:
    """Scores of two observations of the same prompts, with paired intervals and tests of the change."""
    scores: tuple[dict[str, Score], dict[str, Score]] = ({}, {})
    delta, p = {}, {}
    for name, outcomes, better in RATES:
        was, now = outcomes(before), outcomes(after)
        scores[0][name], scores[1][name] = intervals.rate(name, was, better), intervals.rate(name, now, better)
        delta[name] = intervals.mean(name, _values(now) - _values(was), better=better)
        if was:
            p[name] = intervals.mcnemar(was, now)
    for name, kl in (("drift", moved.kl), ("first_token_kl", moved.first_token_kl)):
        scores[0][name], scores[1][name] = replace(kl, value=0.0, low=0.0, high=0.0) if kl.n else kl, kl
        delta[name] = kl
    scores[0]["perplexity"], scores[1]["perplexity"] = moved.perplexity
    for name, of, better in OF_REPLIES:
        values = [_values([of(outcome.reply) for outcome in ordinary(seen)]) for seen in (before, after)]
        scores[0][name], scores[1][name] = (intervals.mean(name, each, better=better) for each in values)
        delta[name] = intervals.mean(name, values[1] - values[0], better=better)
    return Measurement(behaviour, split, scores[0], scores[1], delta, p, p, (before, after))


def _values(of: Sequence[float]) -> Tensor:
    return torch.tensor(of, dtype=torch.float64)
