"""The smallest dose of a control that does enough: found on val, measured once on test.

Doses are doubled until the rate is reached, then halved between the last that did not and the first that did. A dose is
told in residual-norm units too, because how far the stream is moved is what two controls can be compared by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..behaviours import BehaviourLike, as_behaviour
from ..controls import Control
from ..errors import CheckFailed, DataError
from ..measure import Bench, Ledger, Measurement, measure
from ..models import Session, Site
from ..progress import track
from ..runtime.control_like import as_control
from ..stats.score import Score
from .plan import DosePlan, Goal

RATE: Mapping[Goal, str] = {"remove": "shows_rate", "induce": "lacks_rate"}
FIRST, LARGEST = 0.125, 4.0
HALVINGS = 4
PROMPTS = 64  # of each set of val, in every trial


@dataclass(frozen=True)
class DoseTrial:
    """One dose on val: the rate that is to be reached, right answers on neutral prompts, drift."""

    dose: float
    rate: Score
    answers: Score
    drift: Score

    def to_json(self) -> dict[str, Any]:
        return {"dose": self.dose, **{name: getattr(self, name).to_json() for name in ("rate", "answers", "drift")}}


@dataclass(frozen=True, kw_only=True)
class Dosed:
    """The control at the dose found, what was tried, and the measurement on test. `moved` is the median of |h' - h| / |h| at
    `site`, over the val prompts of the rate: the dose in residual-norm units."""

    dose: float
    control: Control
    goal: Goal
    trials: tuple[DoseTrial, ...]
    measurement: Measurement
    moved: float
    site: Site

    def __str__(self) -> str:
        name = RATE[self.goal]
        return (
            f"Dose {self.dose:+.4g} (moves the stream by {self.moved:.3g} of its norm at {self.site}): {name} "
            f"{self.measurement.before[name]} -> {self.measurement.after[name]}, drift {self.measurement.after['drift'].value:.4f} nats per token."
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "dose": self.dose, "goal": self.goal, "moved": self.moved, "site": str(self.site), "trials": [trial.to_json() for trial in self.trials],
            **self.measurement.to_json(),
        }  # fmt: skip


def find_dose(session: Session, behaviour: BehaviourLike, control: Control, plan: DosePlan | None = None, **options: Any) -> Dosed:
    """The smallest dose of `control` at which `shows_rate` is at most `remove_to` or, instead, `lacks_rate` at least `induce_to`.

    `options` are the fields of `DosePlan` by name, in place of a plan. Drift is nats per token on neutral prompts. CheckFailed where
    no dose up to 4 does it within the drift cap.
    """
    plan = DosePlan.given(plan, options, "find_dose")
    goal, target, drift_cap, max_prompts = plan.goal, plan.rate, plan.drift_cap, plan.max_prompts
    behaviour, control = as_behaviour(behaviour, session), as_control(control)
    limit = min(PROMPTS, max_prompts or PROMPTS)
    ledger = Ledger(session)
    bench = Bench(session, behaviour, "val", ledger, max_prompts=limit)
    trials: list[DoseTrial] = []

    def reaches(dose: float) -> bool:
        trials.append(_tried(bench, control.scaled(dose), dose, goal))
        value = trials[-1].rate.value
        return value <= target if goal == "remove" else value >= target

    low, high = 0.0, FIRST
    while not reaches(high):
        low, high = high, 2 * high
        if high > LARGEST:
            raise CheckFailed(_out_of_reach(trials, goal, target))
    for _ in track(range(HALVINGS), "Narrowing the dose", HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    chosen = next(trial for trial in trials if trial.dose == high)
    if chosen.drift.n and chosen.drift.value > drift_cap:
        raise CheckFailed(
            f"The smallest dose that reaches {RATE[goal]} {target:g} is {high:g}, and it moves ordinary replies by {chosen.drift.value:.3f} nats per token"
            f" (at most {drift_cap:g}); allow more drift, ask for less, or use another control."
        )
    dosed = control.scaled(high)
    site, moved = _moved(bench, dosed, goal)
    return Dosed(
        dose=high,
        control=dosed,
        goal=goal,
        trials=tuple(trials),
        measurement=measure(session, behaviour, dosed, max_prompts=max_prompts, ledger=ledger),
        moved=moved,
        site=site,
    )


def _tried(bench: Bench, control: Control, dose: float, goal: Goal) -> DoseTrial:
    trial = bench.try_(control)
    if trial.scores[RATE[goal]].n == 0:
        raise DataError(f"The behaviour {bench.behaviour.name!r} has no val prompts to tell {RATE[goal]} by; give it more prompts.")
    return DoseTrial(dose, trial.scores[RATE[goal]], trial.scores["answers_neutral"], trial.drift.kl)


def _moved(bench: Bench, control: Control, goal: Goal) -> tuple[Site, float]:
    """Where the control acts (the last layer, for one that acts at every writer), and the median share of |h| by which it moves."""
    session = bench.session
    sites = [part.scope.site for part in control.parts if part.scope.site is not None]
    site = Site(sites[0].layer if sites else session.layout.n_layers - 1)
    prompts = bench.prompts["shows" if goal == "remove" else "lacks"]
    plain = bench.ledger.capture(prompts, [site]).values
    with session.controlled(control):
        edited = session.capture(prompts, [site]).values
    return site, float(((edited - plain).norm(dim=-1) / plain.norm(dim=-1)).median())


def _out_of_reach(trials: list[DoseTrial], goal: Goal, target: float) -> str:
    best = (min if goal == "remove" else max)(trials, key=lambda trial: trial.rate.value)
    return f"No dose up to {LARGEST:g} reaches {RATE[goal]} {target:g}; the best is {best.rate.value:.3f} at dose {best.dose:g}. Use another control."
