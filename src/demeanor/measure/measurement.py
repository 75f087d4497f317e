"""Before and after: every score with its interval and n, and what changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..behaviours import ROBUST_SETS, BehaviourLike, RobustSetName, SetName, as_behaviour
from ..behaviours.prompts import Split
from ..controls import Control
from ..io.display import brief, object_html
from ..models import Session
from ..stats import intervals
from ..stats.score import Better, Score
from . import robustness
from .battery import Right, asked_battery, paired
from .bench import RATES, Bench, Trial
from .condition import Condition
from .degeneration import OF_REPLIES, ON_SHOWS
from .ledger import Ledger
from .observation import Observation
from .plan import MeasurePlan
from .text_drift import readable, text_drift_of


@dataclass(frozen=True, repr=False, kw_only=True)
class Measurement:
    """Scores before and after a control by name, the change of each with its interval, and the replies behind them.

    `p` holds exact two-sided McNemar p-values of the changed rates; `p_holm` the same adjusted for all the changes of that
    score that were looked at together. `reworded` holds what was said to prompts worded otherwise, by rewording, where that was asked for.
    """

    behaviour: str
    split: str
    before: Mapping[str, Score]
    after: Mapping[str, Score]
    delta: Mapping[str, Score]
    p: Mapping[str, float]
    p_holm: Mapping[str, float]
    observed: tuple[Observation, Observation]
    reworded: robustness.Seen = field(default_factory=dict)

    def worst(self, name: RobustSetName) -> str | None:
        """The rewording under which the guard falls most, or the one that leaves most of the behaviour; None where there is no such."""
        return robustness.worst(self.reworded, name)

    def to_json(self) -> dict[str, Any]:
        def plain(scores: Mapping[str, Score]) -> dict[str, Any]:
            return {name: score.to_json() for name, score in scores.items()}

        delta = {name: {**score.to_json(), "p": self.p.get(name), "p_holm": self.p_holm.get(name)} for name, score in self.delta.items()}
        worst = {"worst": {name: self.worst(name) for name in ROBUST_SETS}} if self.reworded else {}
        return {"behaviour": self.behaviour, "split": self.split, "before": plain(self.before), "after": plain(self.after), "delta": delta, **worst}

    def replies(self) -> list[dict[str, Any]]:
        """A row per prompt: what was said to it before and after, and how that was judged."""
        asked: list[tuple[str, SetName, tuple[Observation, Observation]]] = [(name, name, self.observed) for name in self.observed[0].sets]
        asked += [(f"{name}_{rewording}", name, pair) for rewording, pair in self.reworded.items() for name in ROBUST_SETS]
        return [
            {
                "set": called, "prompt": was.prompt.text, "messages": [list(message) for message in was.prompt.messages], "system": was.prompt.system,
                "answer": was.prompt.answer, "before": was.reply.text, "after": now.reply.text, "before_shows": was.shown,
                "after_shows": now.shown, "before_right": was.right, "after_right": now.right,
            }
            for called, name, (before, after) in asked
            for was, now in zip(before.sets[name], after.sets[name], strict=True)
        ]  # fmt: skip

    def __repr__(self) -> str:
        rates = [name for name in ("shows_rate", "guard_rate", "answers") if self.after[name].n]
        changes = "".join(f", {name} {self.before[name].value:.3f} to {self.after[name].value:.3f}" for name in rates)
        return f"<Measurement of {brief(self.behaviour)}, {self.split} split{changes}, drift {self.after['drift'].value:.4f}>"

    def _repr_html_(self) -> str:
        rows = [
            (name, self.before[name], score, f"{self.delta[name].value:+.3f}" if name in self.delta else "", score.better)
            for name, score in self.after.items()
            if score.n
        ]
        headings = ("", "before", "after", "change", "better")
        missing = ", ".join(name for name, score in self.after.items() if not score.n)
        note = f"No prompts for {missing}." if missing else ""
        return object_html(f"{self.behaviour}, {self.split} split", {}, headings, rows, note)

    def __str__(self) -> str:
        lines = [f"{self.behaviour} ({self.split} split)", f"{'':<16}{'before':<32}after"]
        for name, score in self.after.items():
            shown = (str(self.before[name]), str(score)) if score.n else ("none", "none")
            lines.append(f"{name:<16}{shown[0]:<32}{shown[1]}")
        return "\n".join(lines)


def measure(
    session: Session,
    behaviour: BehaviourLike,
    control: Control | None = None,
    plan: MeasurePlan | None = None,
    *,
    base: Session | None = None,
    split: Split = "test",
    ledger: Ledger | None = None,
    **options: Any,
) -> Measurement:
    """What a control does to a behaviour, to what must still show it, and to everything else.

    `options` are the fields of `MeasurePlan` by name, in place of a plan. `base` is another model to compare with,
    instead of the untouched `session`. `ledger` saves asking that one again.
    """
    plan = MeasurePlan.given(plan, options, "measure")
    behaviour = as_behaviour(behaviour, session)
    bench = Bench(base or session, behaviour, split, ledger, max_prompts=plan.max_prompts)
    return measure_all(bench, {"": Condition(session, control, plan.prompting)}, plan)[""]


def measure_all(bench: Bench, conditions: Mapping[str, Condition], plan: MeasurePlan | None = None) -> dict[str, Measurement]:
    """Several conditions, by name, against the untouched model of a bench; of the plan, what is asked besides the behaviour."""
    reworded = robustness.reworded(bench, plan.max_prompts) if plan is not None and plan.robust else {}  # first: it may be refused
    texts = readable(bench.ledger.session)
    measured = {}
    for name, condition in conditions.items():
        measured[name] = with_text_drift(compare(bench, bench.try_(condition)), text_drift_of(bench.ledger, condition, texts))
        if plan is not None and plan.battery:
            measured[name] = with_battery(measured[name], asked_battery(bench.ledger, Condition(bench.ledger.session)), asked_battery(bench.ledger, condition))
        if reworded:
            seen = {way: (other.untouched.observation, other.try_(condition).observation) for way, other in reworded.items()}
            measured[name] = with_robustness(measured[name], seen)
    return dict(zip(measured, _together(list(measured.values()))))


def _together(measurements: Sequence[Measurement]) -> list[Measurement]:
    """The measurements with the p-values of each score adjusted over all of them."""
    adjusted = {name: intervals.holm([measurement.p[name] for measurement in measurements]) for name in measurements[0].p}
    return [
        replace(measurement, p_holm={name: values[number] for name, values in adjusted.items()})
        for number, measurement in enumerate(measurements)
    ]


def compare(bench: Bench, trial: Trial) -> Measurement:
    """Scores of the untouched model and of a trial on the same prompts, with paired intervals and tests of the change."""
    before, after, drift = bench.untouched.observation, trial.observation, trial.drift
    scores: tuple[dict[str, Score], dict[str, Score]] = (dict(bench.untouched.scores), dict(trial.scores))
    delta, p = {}, {}
    for name, outcomes, better in RATES:
        was, now = outcomes(before), outcomes(after)
        delta[name] = intervals.mean(name, _values(now) - _values(was), better=better)
        if was:
            p[name] = intervals.mcnemar(was, now)
    for name, kl in (("drift", drift.kl), ("first_token_kl", drift.first_token_kl)):
        scores[0][name], scores[1][name], delta[name] = _from_none(kl), kl, kl
    scores[0]["perplexity"], scores[1]["perplexity"] = drift.perplexity
    samples = {name: ([[of(outcome.reply) for outcome in seen.sets[before.ordinary]] for seen in (before, after)], better) for name, of, better in OF_REPLIES}
    samples |= {
        name: ([of([outcome.prompt.key for outcome in seen.sets["shows"]], [outcome.reply for outcome in seen.sets["shows"]]) for seen in (before, after)], better)
        for name, of, better in ON_SHOWS
    }
    for name, (told, better) in samples.items():
        values = [_values(one) for one in told]
        scores[0][name], scores[1][name] = (intervals.mean(name, sample, better=better) for sample in values)
        delta[name] = intervals.mean(name, values[1] - values[0], better=better)
    return Measurement(
        behaviour=bench.behaviour.name,
        split=bench.split,
        before=scores[0],
        after=scores[1],
        delta=delta,
        p=p,
        p_holm=p,
        observed=(before, after),
    )


def with_text_drift(measurement: Measurement, kl: Score) -> Measurement:
    """The measurement with drift on plain prose; as it was where the model does not read any."""
    if not kl.n:
        return measurement
    before, after, delta = ({**scores, kl.name: kl} for scores in (measurement.before, measurement.after, measurement.delta))
    return replace(measurement, before={**before, kl.name: _from_none(kl)}, after=after, delta=delta)


def with_battery(measurement: Measurement, was: Right, now: Right) -> Measurement:
    """The measurement with the questions of the battery, all together and by skill, and exact tests of what changed."""
    return _with_rates(measurement, paired(was, now), "higher")


def with_robustness(measurement: Measurement, seen: robustness.Seen) -> Measurement:
    """The measurement with guard and gain where prompts were worded otherwise, all rewordings together and each."""
    for name in ROBUST_SETS:
        measurement = _with_rates(measurement, robustness.paired(seen, name), "higher" if name == "guard" else "lower")
    return replace(measurement, reworded=seen)


def _with_rates(measurement: Measurement, pairs: Mapping[str, tuple[list[bool], list[bool]]], better: Better) -> Measurement:
    """The measurement with more rates by name, and exact tests of what changed."""
    before, after, delta = dict(measurement.before), dict(measurement.after), dict(measurement.delta)
    p = dict(measurement.p)
    for name, (old, new) in pairs.items():
        before[name], after[name] = (intervals.rate(name, outcomes, better) for outcomes in (old, new))
        delta[name] = intervals.mean(name, _values(new) - _values(old), better=better)
        if old:
            p[name] = intervals.mcnemar(old, new)
    return replace(measurement, before=before, after=after, delta=delta, p=p, p_holm=p)


def _from_none(kl: Score) -> Score:
    """What the untouched model has moved, where something was compared."""
    return replace(kl, value=0.0, low=0.0, high=0.0) if kl.n else kl


def _values(of: Sequence[float]) -> Tensor:
    return torch.tensor(of, dtype=torch.float64)
