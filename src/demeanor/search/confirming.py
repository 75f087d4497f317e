"""The front confirmed: its points run with whole replies on val, beside a few other trials that say whether quick values rank as whole replies do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..controls import Control
from ..job.confirm import cut, telling_prompts
from ..measure.bench import Bench, Trial
from ..progress import say, track
from ..stats.correlation import spearman
from .front import front, spread
from .pick import Values
from .study import Limits, Recorded
from .trying import Trying


@dataclass(frozen=True)
class Confirmed:
    """A trial run with whole replies: its control, its gate in force, and what the bench saw."""

    recorded: Recorded
    control: Control
    trial: Trial

    @property
    def values(self) -> Values:
        """By the names that bounds may use. left: the share of `shows` whose replies are no use: the behaviour shown, a wrong answer, nonsense, or the same as
        to other prompts."""
        trial, useful = self.trial, self.trial.observation.useful("shows")
        return {
            "shows": trial.rate("shows_rate"), "guard": trial.rate("guard_rate"), "lacks": trial.rate("lacks_rate"), "answers": trial.rate("answers"),
            "left": 1 - sum(useful) / len(useful) if useful else None, "drift": trial.drift.kl.value if len(trial.drift.tokens) else 0.0,
        }  # fmt: skip

    @property
    def costs(self) -> tuple[float, ...]:
        """What is to be small, as for quick values."""
        values = self.values
        guard = values["guard"]
        return (values["left"] or 0.0, values["drift"] or 0.0, *(() if guard is None else (1 - guard,)))

    @property
    def name(self) -> str:
        return ", ".join(f"{name} {_short(value)}" for name, value in self.recorded.params.items())

    def to_json(self) -> dict[str, Any]:
        quick = {name: getattr(self.recorded.quick, name) for name in ("left", "drift", "guard", "shown", "seen")}
        return {"trial": self.recorded.number, "setting": dict(self.recorded.params), "quick": quick, "confirmed": dict(self.values), "control": str(self.control)}


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Ranked:
    """Whether quick values put trials in the order in which whole replies do: Spearman's rank correlation of the rate on `shows`, over n trials."""

    correlation: float
    n: int

    def __str__(self) -> str:
        if math.isnan(self.correlation):
            return f"{self.n} trials were run with whole replies, too few (or too equal) to tell whether quick values rank them rightly"
        return f"quick values and whole replies rank {self.n} trials by their rate on shows with a correlation of {self.correlation:+.2f} (Spearman)"


@dataclass(frozen=True)
class Front:
    """The confirmed trials that no other beats, those that leave least first; all trials that were confirmed; and how well they were ranked."""

    points: tuple[Confirmed, ...]
    confirmed: tuple[Confirmed, ...]
    ranked: Ranked


def confirm_front(trying: Trying, recorded: Sequence[Recorded], limits: Limits, points: int, checked: int) -> Front:
    """At most `points` trials of the quick front, and `checked` others, run with whole replies; the front of what they gave."""
    whole = [trial for trial in recorded if trial.quick.whole]
    feasible = [trial for trial in whole if limits.hold(trial.quick)]
    if not feasible:
        say("No trial keeps guard and drift within their limits; the front is of all trials.")
        feasible = whole
    best = [feasible[number] for number in front([trial.quick.costs for trial in feasible])]
    chosen = [best[number] for number in spread([trial.quick.costs for trial in best], points)]
    others = _evenly([trial for trial in whole if trial not in chosen], checked)
    bench = trying.bench if trying.bench.session.runner.small else trying.bench.on(telling_prompts(trying.bench, trying.findings))
    plain: dict[str, Trial] = {}
    confirmed = tuple(_confirm(trying, bench, trial, plain) for trial in track([*chosen, *others], "Confirming", len(chosen) + len(others)))
    untouched = bench.untouched.rate("guard_rate")
    kept = [trial for trial in confirmed if limits_hold(limits, trial.values, untouched)] or list(confirmed)
    left = [kept[number] for number in front([trial.costs for trial in kept])]
    return Front(tuple(sorted(left, key=lambda trial: trial.costs)), confirmed, ranked(confirmed))


def ranked(confirmed: Sequence[Confirmed]) -> Ranked:
    pairs = [(trial.recorded.quick.shown, rate) for trial in confirmed if (rate := trial.values["shows"]) is not None]
    return Ranked(spearman([one for one, _ in pairs], [other for _, other in pairs]), len(pairs))


def limits_hold(limits: Limits, values: Mapping[str, float | None], untouched: float | None) -> bool:
    """Whether what whole replies gave is within what the guard (of the rate that is there untouched) and drift must keep."""
    guard, drift = values["guard"], values["drift"]
    return (guard is None or guard >= limits.guard * (1.0 if untouched is None else untouched)) and (drift is None or drift <= limits.drift)


def _evenly(trials: Sequence[Recorded], count: int) -> list[Recorded]:
    """Trials of `count` different settings, spread evenly from those that leave least to those that leave most."""
    distinct = list({trial.setting: trial for trial in sorted(trials, key=lambda trial: (trial.quick.shown, trial.number))}.values())
    count = min(count, len(distinct))
    return [distinct[round(step * (len(distinct) - 1) / max(1, count - 1))] for step in range(count)]


def _confirm(trying: Trying, bench: Bench, recorded: Recorded, plain: dict[str, Trial]) -> Confirmed:
    """One trial; a gate costs no generation, so a control behind several is run once."""
    if recorded.setting not in plain:
        plain[recorded.setting] = bench.try_(trying.space.control(recorded.params))
    trial = plain[recorded.setting]
    if recorded.gate in trying.fires:
        trial = trial.where(cut(trying.fires[recorded.gate], trying.bench, bench), bench.untouched)
    return Confirmed(recorded, trying.with_gate(recorded), trial)
