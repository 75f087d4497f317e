"""The dial: one direction from removed through unchanged to induced, with the dose-response curve that shows it.

A dial adds the mean difference of a site, in units of the gap between the classes: -1 takes `shows` to where `lacks`
lie, +1 takes `lacks` to where `shows` lie. What it does at every dose is measured on the test split, never assumed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..behaviours import BehaviourLike, as_behaviour
from ..controls import Control, Direction, add
from ..errors import DataError
from ..finding.estimators import ESTIMATORS
from ..finding.find import Findings
from ..finding.select import TOO_LATE
from ..io.display import brief, object_html
from ..measure.bench import RATES, Bench, Trial, merit
from ..measure.ledger import Ledger
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


@dataclass(frozen=True, repr=False)
class Dial:
    """The direction that is turned, on which tokens, and what every dose did."""

    direction: Direction
    steps: tuple[Step, ...]
    tokens: Tokens = "last_and_reply"

    def __repr__(self) -> str:
        first, last = self.steps[0], self.steps[-1]
        rates = f"shows_rate {first.scores['shows_rate'].value:.3f}, lacks_rate {last.scores['lacks_rate'].value:.3f}"
        of = f"{brief(self.direction.behaviour, 40)} in {brief(self.direction.model_name, 40)}"
        return f"<Dial of {of}: {self.direction.site}, doses {first.dose:+g} to {last.dose:+g}: {rates}>"

    def _repr_html_(self) -> str:
        names = [name for name, score in self.steps[0].scores.items() if score.n]
        rows = [(f"{step.dose:+g}", *(step.scores[name] for name in names)) for step in self.steps]
        facts = {"site": self.direction.site, "gap": f"{self.direction.gap:.3g}", "tokens": self.tokens}
        title = f"Dial of {self.direction.behaviour} in {self.direction.model_name}"
        return object_html(title, facts, ("dose", *names), rows, self.verdict())

    @property
    def control(self) -> Control:
        """The dial turned to +1; `.scaled(dose)` turns it elsewhere."""
        return add(self.direction, 1.0, self.tokens)

    def verdict(self) -> str:
        """One sentence on how far the dial turns the behaviour, whether it does so evenly, and what answers it leaves."""
        first, still, last = self.steps[0], self.steps[len(self.steps) // 2], self.steps[-1]
        shows, lacks, right = "shows_rate", "lacks_rate", "answers_neutral"
        ends = (
            f"dose {first.dose:+g} takes shows from {_percent(still.scores[shows])} to {_percent(first.scores[shows])},"
            f" dose {last.dose:+g} takes lacks from {_percent(still.scores[lacks])} to {_percent(last.scores[lacks])}"
        )
        if right in still.scores and still.scores[right].n:
            ends += f"; neutral answers are right in {_percent(first.scores[right])} and {_percent(last.scores[right])}"
        if not any(_apart(still.scores[name], step.scores[name]) for name, step in ((shows, first), (lacks, last))):
            return f"This dial turns nothing: {ends}."
        fall = max(self._fall(name) for name in (shows, lacks))
        even = "never falling by more than its interval" if fall <= 0 else "but falls on the way (see the curve)"
        return f"As the dose rises so does the behaviour, {even}: {ends}."

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


def dial(
    session: Session,
    behaviour: BehaviourLike,
    findings: Findings,
    at: Sequence[float],
    max_prompts: int | None = None,
    ledger: Ledger | None = None,
) -> Dial:
    """The best dial of a search, measured at every dose of `at` on (at most 120 prompts of each set of) the test split.

    max_prompts: of each set, for the choice on val too, where that is fewer.
    """
    behaviour = as_behaviour(behaviour, session)
    ledger = ledger or Ledger(session)
    direction, tokens = choose_dial(Bench(session, behaviour, "val", ledger, max_prompts=min(VAL_PROMPTS, max_prompts or VAL_PROMPTS)), findings)
    bench = Bench(session, behaviour, "test", ledger, max_prompts=min(TEST_PROMPTS, max_prompts or TEST_PROMPTS))
    steps = [
        _step(bench, bench.try_(add(direction, dose, tokens) if dose else None), dose) for dose in track(at, "Turning the dial", len(at))
    ]
    return Dial(direction, tuple(_together(steps)), tokens)


def choose_dial(bench: Bench, findings: Findings) -> tuple[Direction, Tokens]:
    """The mean difference, and the tokens it is added to, that turn best on val: the behaviour gone from `shows` at -1, there
    on `lacks` at +1, answers right at -1. Raises DataError where no estimator of class gaps was tried."""
    options: list[tuple[Direction, Tokens]] = [(direction, tokens) for direction in dial_sites(findings)[:TRIED] for tokens in ADDED_TO]
    if not options:
        gaps = " or ".join(estimator.name for estimator in ESTIMATORS.every() if estimator.traits.inducing)
        raise DataError(f"A dial adds the gap between the classes, which {', '.join(findings.estimators)} does not find; try {gaps} too.")
    turned = [_turns(bench, *option) for option in track(options, "Choosing the dial", len(options))]
    return max(zip(turned, options), key=lambda pair: pair[0])[1]


def dial_sites(findings: Findings) -> list[Direction]:
    """The directions of a search that are class gaps, those that induce most at dose +1 first; of layers that are not too late, if
    there are any. None where no estimator of class gaps was tried."""
    inducing = [name for name in findings.estimators if ESTIMATORS.named(name).traits.inducing]
    candidates = [(d, c) for d, c in zip(findings.directions, findings.candidates) if c.estimator in inducing]
    early = [(d, c) for d, c in candidates if TOO_LATE not in c.discarded] or candidates
    return [direction for direction, _ in sorted(early, key=lambda pair: -pair[1].induce)]


def _turns(bench: Bench, direction: Direction, tokens: Tokens) -> float:
    """How good both ends of the dial are: the mean of what should be high there, each asked of the sets that it is told by."""
    down = bench.on({"shows": bench.prompts["shows"], "neutral": bench.prompts["neutral"]}).try_(add(direction, -1.0, tokens))
    up = bench.on({"lacks": bench.prompts["lacks"]}).try_(add(direction, 1.0, tokens))
    return merit([down.avoided("shows_rate"), up.rate("lacks_rate"), down.rate("answers_shows"), down.rate("answers_neutral")])


def _step(bench: Bench, trial: Trial, dose: float) -> Step:
    before, after = bench.untouched.observation, trial.observation
    p = {name: intervals.mcnemar(outcomes(before), outcomes(after)) for name, outcomes, _ in RATES if trial.scores[name].n}
    return Step(dose, {**trial.scores, "drift": trial.drift.kl}, p)


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
