"""The dial: one direction from removed through unchanged to induced, with the dose-response curve that shows it.

A dial adds the mean difference of a site, in units of the gap between the classes: -1 takes `shows` to where `lacks`
lie, +1 takes `lacks` to where `shows` lie. What it does at every dose is measured on the test split, never assumed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..behaviours import Behaviour
from ..controls import Control, Direction, add
from ..errors import DataError
from ..finding.estimators import ESTIMATORS
from ..finding.find import Findings
from ..finding.select import TOO_LATE
from ..measure import Observation, observe
from ..measure.condition import Condition
from ..measure.drift import drift
from ..measure.measurement import RATES, ordinary
from ..models import Session
from ..progress import track
from ..runtime.intervene import Tokens
from ..stats import intervals
from ..stats.score import Score

TRIED = 4  # sites that are tried for real, at most
ADDED_TO: tuple[Tokens, ...] = ("read", "last_and_reply")
VAL_PROMPTS = 48  # of each set, to choose the site
TEST_PROMPTS = 120  # of each set, to draw the curve


@dataclass(frozen=True)
class Step:
    """One dose, and every rate of the test split there with its interval (n = 0 where the behaviour has no such prompts).

    p: exact McNemar p-values against the untouched model, by rate, adjusted (Holm) over all doses.
    """

    dose: float
    scores: Mapping[str, Score]
    p: Mapping[str, float]


@dataclass(frozen=True)
class Dial:
    """The direction that is turned, on which tokens, and what every dose did."""

    direction: Direction
    steps: tuple[Step, ...]
    tokens: Tokens = "last_and_reply"

    @property
    def control(self) -> Control:
        """The dial turned to +1; `.scaled(dose)` turns it elsewhere."""
        return add(self.direction, 1.0, self.tokens)

    def verdict(self) -> str:
        """One sentence on how far the dial turns the behaviour, whether it does so evenly, and what answers it leaves."""
        first, still, last = self.steps[0], self.steps[len(self.steps) // 2], self.steps[-1]
        shows, lacks, right = "shows_rate", "lacks_rate", "answers_neutral"
        told = (
            f"dose {first.dose:+g} takes shows from {_percent(still.scores[shows])} to {_percent(first.scores[shows])},"
            f" dose {last.dose:+g} takes lacks from {_percent(still.scores[lacks])} to {_percent(last.scores[lacks])}"
        )
        if right in still.scores and still.scores[right].n:
            told += f"; neutral answers are right in {_percent(first.scores[right])} and {_percent(last.scores[right])}"
        if not any(_apart(still.scores[name], step.scores[name]) for name, step in ((shows, first), (lacks, last))):
            return f"This dial turns nothing: {told}."
        fall = max(self._fall(name) for name in (shows, lacks))
        even = "never falling by more than its interval" if fall <= 0 else "but falls on the way (see the curve)"
        return f"As the dose rises so does the behaviour, {even}: {told}."

    def _fall(self, name: str) -> float:
        """By how much a rate falls between neighbouring doses, beyond the half-width of its interval, at most."""
        scores = [step.scores[name] for step in self.steps]
        return max((one.value - other.value - (one.high - one.low) / 2 for one, other in itertools.pairwise(scores) if one.n), default=0.0)

    def to_json(self) -> dict[str, Any]:
        steps = [
            {"dose": step.dose, **{name: {**s.to_json(), "p_holm": step.p.get(name)} for name, s in step.scores.items() if s.n}}
            for step in self.steps
        ]
        return {"site": str(self.direction.site), "gap": self.direction.gap, "verdict": self.verdict(), "steps": steps}


def doses(count: int) -> tuple[float, ...]:
    """`count` doses from -1 to +1, evenly; DataError for a count that has not 0 among them."""
    if count < 3 or count % 2 == 0:
        raise DataError(f"{count} doses do not have the untouched model among them; use an odd number from 3.")
    return tuple(round(2 * step / (count - 1) - 1, 6) for step in range(count))


def dial(session: Session, behaviour: Behaviour, found: Findings, at: Sequence[float], max_prompts: int | None = None) -> Dial:
    """The best dial of a search, measured at every dose of `at` on (at most 120 prompts of each set of) the test split."""
    direction, tokens = choose_dial(session, behaviour, found)
    limit = min(TEST_PROMPTS, max_prompts or TEST_PROMPTS)
    base = observe(session, behaviour, max_prompts=limit)
    steps = [
        _step(session, behaviour, add(direction, dose, tokens) if dose else None, dose, base, limit)
        for dose in track(at, "Turning the dial", len(at))
    ]
    return Dial(direction, tuple(_together(steps)), tokens)


def choose_dial(session: Session, behaviour: Behaviour, found: Findings) -> tuple[Direction, Tokens]:
    """The mean difference, and the tokens it is added to, that turn best on val: the behaviour gone from `shows` at -1, there
    on `lacks` at +1, answers right at -1. Raises DataError where no estimator of class gaps was tried."""
    options: list[tuple[Direction, Tokens]] = [(direction, tokens) for direction in dial_sites(found)[:TRIED] for tokens in ADDED_TO]
    if not options:
        gaps = " or ".join(each.name for each in ESTIMATORS.every() if each.traits.inducing)
        raise DataError(f"A dial adds the gap between the classes, which {', '.join(found.estimators)} does not find; try {gaps} too.")
    turned = [_turns(session, behaviour, *option) for option in track(options, "Choosing the dial", len(options))]
    return max(zip(turned, options), key=lambda pair: pair[0])[1]


def dial_sites(found: Findings) -> list[Direction]:
    """The directions of a search that are class gaps, those that induce most at dose +1 first; of layers that are not too late, if
    there are any. None where no estimator of class gaps was tried."""
    inducing = [name for name in found.estimators if ESTIMATORS.named(name).traits.inducing]
    made = [(d, c) for d, c in zip(found.directions, found.candidates) if c.estimator in inducing]
    early = [(d, c) for d, c in made if TOO_LATE not in c.discarded] or made
    return [direction for direction, _ in sorted(early, key=lambda pair: -pair[1].induce)]


def _turns(session: Session, behaviour: Behaviour, direction: Direction, tokens: Tokens) -> float:
    """Mean of what should be high when the dial is turned fully either way, on val."""
    down, up = (observe(session, behaviour, add(direction, dose, tokens), split="val", max_prompts=VAL_PROMPTS) for dose in (-1.0, 1.0))
    goods = [[not shown for shown in down.shown("shows")], up.shown("lacks"), down.right("shows"), down.right("neutral")]
    shares = [sum(good) / len(good) for good in goods if good]
    return sum(shares) / len(shares)


def _step(session: Session, behaviour: Behaviour, control: Control | None, dose: float, base: Observation, limit: int) -> Step:
    seen = observe(session, behaviour, control, max_prompts=limit) if control else base
    scores = {name: intervals.rate(name, outcomes(seen), better) for name, outcomes, better in RATES}
    scores["drift"] = drift(Condition(session), Condition(session, control), ordinary(base)).kl
    p = {name: intervals.mcnemar(outcomes(base), outcomes(seen)) for name, outcomes, _ in RATES if scores[name].n}
    return Step(dose, scores, p)


def _together(steps: Sequence[Step]) -> list[Step]:
    """The steps with the p-values of each rate adjusted over all doses but the untouched one."""
    moved = [step for step in steps if step.dose]
    adjusted = {name: dict(zip((step.dose for step in moved), intervals.holm([step.p[name] for step in moved]))) for name in moved[0].p}
    return [replace(step, p={name: values.get(step.dose, 1.0) for name, values in adjusted.items()}) for step in steps]


def _percent(score: Score) -> str:
    return f"{100 * score.value:.1f} %" if score.n else "none"


def _apart(one: Score, other: Score) -> bool:
    """Whether two intervals do not touch."""
    return one.high < other.low or other.high < one.low
