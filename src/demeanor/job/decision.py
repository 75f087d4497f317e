"""What confirming decides among: proposals, the same tried, and the rule that chooses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..controls import Control, Direction, Gate, Round, ablate, add
from ..finding.find import Findings
from ..finding.selective import firmest
from ..measure.bench import Trial
from ..runtime.intervene import Tokens
from ..stats.correlation import spearman

LITTLE = 0.02  # nats of the first token, by which an edit that weights can hold may change ordinary prompts more


@dataclass(frozen=True)
class Proposal:
    """A control without a gate: a direction ablated, or added at a dose (in class gaps) to some tokens; or a selective edit `fitted` to it."""

    direction: Direction
    push: tuple[float, Tokens] | None = None
    fitted: Control | None = None

    @property
    def control(self) -> Control:
        if self.fitted is not None:
            return self.fitted
        return ablate(self.direction) if self.push is None else add(self.direction, *self.push)

    def __str__(self) -> str:
        rank = f", rank {len(self.direction.basis)}" if len(self.direction.basis) > 1 else ""
        how = "" if self.push is None else f", added at dose {self.push[0]:g}"
        if self.fitted is not None:
            how = f", selective (strength {self.fitted.made_from['strength']:g})"
        return f"{self.direction.estimator}, {self.direction.site}{rank}{how}"


@dataclass(frozen=True)
class Option:
    """A proposal that was tried on val, behind a gate or not: its rates there (None where the behaviour has no such prompts)."""

    proposal: Proposal
    gate: Gate | None
    trial: Trial

    @property
    def direction(self) -> Direction:
        return self.proposal.direction

    @property
    def control(self) -> Control:
        return self.proposal.control.when(self.gate) if self.gate else self.proposal.control

    @property
    def merit(self) -> float:
        """The figure options are ranked by: that of the trial."""
        return self.trial.merit

    @property
    def shows_rate(self) -> float:
        return self.trial.rate("shows_rate") or 0.0

    @property
    def guard_rate(self) -> float | None:
        return self.trial.rate("guard_rate")

    @property
    def answers_shows(self) -> float | None:
        return self.trial.rate("answers_shows")

    @property
    def answers_neutral(self) -> float | None:
        return self.trial.rate("answers_neutral")

    def __str__(self) -> str:
        return f"{self.proposal}; " + (f"gate: {self.gate}" if self.gate else "no gate")


@dataclass(frozen=True)
class Agreement:
    """Whether what selection saw of directions puts them in the order in which whole replies do: Spearman's rank correlation."""

    correlation: float
    n: int

    def __str__(self) -> str:
        if math.isnan(self.correlation):
            return f"{self.n} directions were run for real, too few (or too equal) to tell whether selection ranked them rightly"
        return f"selection and whole replies rank {self.n} directions with a correlation of {self.correlation:+.2f} (Spearman)"


@dataclass(frozen=True)
class Decision:
    """Every option that was tried, best first; the rounds that raised the rank; which gates could not be made, and why."""

    options: tuple[Option, ...]
    rounds: tuple[Round, ...]
    refused_gates: tuple[str, ...]
    agreement: Agreement

    @property
    def chosen(self) -> Option:
        return self.options[0]

    @property
    def best_bakeable(self) -> Option | None:
        return next((option for option in self.options if option.control.bakeable() is None), None)

    def why(self) -> str:
        """One sentence on why the chosen option, in particular its gate or the lack of one."""
        best, other = self.chosen, next((o for o in self.options if (o.gate is None) != (self.chosen.gate is None)), None)
        if other is None:
            reason = "; ".join(self.refused_gates) or "the behaviour has no guard set, so there is nothing a gate would keep"
            return f"No gate: {reason}."
        comparison = (
            f"on val it shows {best.shows_rate:.2f} (guard kept {_text(best.guard_rate)}, right answers {_text(best.answers_shows)})"
        )
        comparison += f"; the best {'without a gate' if best.gate else 'with one'} shows {other.shows_rate:.2f} (guard kept {_text(other.guard_rate)}, right answers {_text(other.answers_shows)})"
        return f"{'A gate' if best.gate else 'No gate'}: {comparison}."


def _text(rate: float | None) -> str:
    return "none" if rate is None else f"{rate:.2f}"


def preference(option: Option) -> tuple[float, bool, int, int, float]:
    """The rule. Merit first; among equals no gate (it can be baked), the gate against more sets, lower rank, less change to ordinary prompts."""
    against = len(option.gate.against) if option.gate else 0
    return round(option.merit, 3), option.gate is None, against, -len(option.direction.basis), -option.trial.drift.first_nats


def ordered(options: Sequence[Option]) -> tuple[Option, ...]:
    """The best first, by the rule; before it a selective edit, where it is as good as few prompts can tell, unless plain weights do it."""
    ranked = sorted(options, key=preference, reverse=True)
    best = ranked[0]
    as_good = [option for option in ranked if option.proposal.fitted is not None and _as_good(option.trial, best.trial)]
    if not as_good or (best.gate is None and best.proposal.fitted is None and best.control.bakeable() is None):
        return tuple(ranked)
    first = as_good[firmest([(option.control, option.trial) for option in as_good])]
    return (first, *(option for option in ranked if option is not first))


def _as_good(one: Trial, other: Trial) -> bool:
    """Whether no rate of one is worse than the interval of the other's, and what changes elsewhere is little."""
    for name, score in other.scores.items():
        value = one.scores[name].value
        if score.n and (value > score.high if score.better == "lower" else value < score.low):
            return False
    return one.drift.first_nats <= other.drift.first_nats + LITTLE


def agreement(findings: Findings, options: Sequence[Option]) -> Agreement:
    """Of the directions that were run for real with nothing but them ablated."""
    seen = {id(direction): candidate for direction, candidate in zip(findings.directions, findings.candidates)}
    pairs = [
        (seen[id(option.direction)].merit, 1 - option.shows_rate - option.trial.drift.first_nats)
        for option in options
        if option.gate is None and option.proposal.push is None and option.proposal.fitted is None and id(option.direction) in seen
    ]
    return Agreement(spearman([one for one, _ in pairs], [other for _, other in pairs]), len(pairs))
