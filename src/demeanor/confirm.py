"""Deciding what control to use: the best few directions, with and without a gate, judged by whole replies on val.

Selection ranks directions by the first reply token. Here the best few are run for real, plain against
projected against higher rank, each without a gate and behind the gates that can be made. A gated control
gives, row by row, the controlled reply where the gate fires and the untouched one elsewhere, so gates cost
no generation of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .behaviours import SET_NAMES, Behaviour, SetName
from .controls import Control, Direction, Gate, ablate, gate
from .controls.gate import fires_on
from .detect import make_detector
from .errors import CheckFailed, NoCandidate
from .find import Found
from .iterate import ENOUGH, Round, by_wording, iterate
from .measure import Observation, observe
from .measure.observation import reply_budget
from .models import Session
from .progress import say
from .select import table

BEST = 3  # directions of each estimator
LEFT = 0.02  # of shows still exhibiting the behaviour, above which wordings are taken apart


@dataclass(frozen=True)
class Option:
    """One control that was tried on val: its rates there (None where the behaviour has no such prompts)."""

    direction: Direction
    gate: Gate | None
    shows_rate: float
    lacks_rate: float
    guard_rate: float | None
    answers_shows: float | None
    answers_neutral: float | None
    kl: float

    @property
    def control(self) -> Control:
        plain = ablate(self.direction)
        return plain.when(self.gate) if self.gate else plain

    @property
    def merit(self) -> float:
        """Mean of what should be high, less the harm to neutral prompts: the figure options are ranked by."""
        goods = [1 - self.shows_rate, 1 - self.lacks_rate, self.guard_rate, self.answers_shows, self.answers_neutral]
        known = [good for good in goods if good is not None]
        return sum(known) / len(known) - (0.0 if self.gate else self.kl)

    def __str__(self) -> str:
        rank = f", rank {len(self.direction.basis)}" if len(self.direction.basis) > 1 else ""
        return f"{self.direction.estimator}, {self.direction.site}{rank}; " + (f"gate: {self.gate}" if self.gate else "no gate")


@dataclass(frozen=True)
class Decision:
    """Every option that was tried, best first; the rounds that raised the rank; which gates could not be made, and why."""

    options: tuple[Option, ...]
    rounds: tuple[Round, ...]
    refused_gates: tuple[str, ...]

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
        told = f"on val it shows {best.shows_rate:.2f} (guard kept {_text(best.guard_rate)}, right answers {_text(best.answers_shows)})"
        told += f"; the best {'without a gate' if best.gate else 'with one'} shows {other.shows_rate:.2f} (guard kept {_text(other.guard_rate)}, right answers {_text(other.answers_shows)})"
        return f"{'A gate' if best.gate else 'No gate'}: {told}."


def _text(rate: float | None) -> str:
    return "none" if rate is None else f"{rate:.2f}"


def confirm(
    session: Session, behaviour: Behaviour, found: Found, *, false_positives: float = 0.05, max_prompts: int | None = None
) -> Decision:
    """Try the best directions on val, gated and not, at rank 1 and (where answers do not come back) higher."""
    base = observe(session, behaviour, split="val", max_prompts=max_prompts)
    gates, refused = _gates(session, behaviour, false_positives, max_prompts)
    fires = {gate: _fires(session, behaviour, gate, max_prompts) for gate in gates}

    def options(direction: Direction, kl: float) -> list[Option]:
        plain = observe(session, behaviour, ablate(direction), split="val", max_prompts=max_prompts)
        made = [_option(direction, None, plain, kl)]
        return made + [_option(direction, gate, plain.where(fires[gate], base), kl) for gate in gates]

    tried = [
        option for number in _shortlist(found, bool(gates)) for option in options(found.directions[number], found.candidates[number].kl)
    ]
    if not tried:
        rows = [candidate.row() for candidate in found.candidates]
        raise NoCandidate(table(rows, found.layer_limit))
    if min(option.shows_rate for option in tried if option.gate is None) > LEFT:
        direction = by_wording(session, found, make_detector(behaviour.detect))
        if direction is not None:
            tried += options(direction, _kl_at(found, direction))
    rounds: list[Round] = []
    for start in _starts(tried):
        if max(option.answers_shows or 0.0 for option in tried) >= ENOUGH:
            break
        direction, more = iterate(session, start.direction, found.sets, reply_budget(session, behaviour))
        rounds += more
        if more:
            tried += options(direction, start.kl)
    return Decision(tuple(sorted(tried, key=_preference, reverse=True)), tuple(rounds), tuple(refused))


def _preference(option: Option) -> tuple[float, bool, int, int, float]:
    """Merit first; among equals no gate (it can be baked), the gate against more sets, lower rank, less change to neutral prompts."""
    against = len(option.gate.against) if option.gate else 0
    return round(option.merit, 3), option.gate is None, against, -len(option.direction.basis), -option.kl


def _kl_at(found: Found, direction: Direction) -> float:
    """The neutral KL of the rank-1 candidate at the same site."""
    return next(c.kl for c in found.candidates if c.site == direction.site and c.estimator == direction.estimator)


def _starts(tried: Sequence[Option]) -> list[Option]:
    """Where to iterate from when right answers are missing: the best options of two different layers."""
    if all(option.answers_shows is None for option in tried):
        return []
    order = sorted(tried, key=_preference, reverse=True)
    other = next((option for option in order if option.direction.site.layer != order[0].direction.site.layer), None)
    return [order[0], *([other] if other else [])]


def _shortlist(found: Found, gated: bool) -> list[int]:
    """The best few directions of each estimator, by bypass; behind a gate, those that change neutral prompts may compete too."""
    allowed: set[str | None] = {None, "changes neutral prompts"} if gated else {None}
    if all(candidate.discarded not in allowed for candidate in found.candidates):
        say("No direction induces the behaviour at dose 1; those that remove it are tried all the same.")
        allowed.add("does not induce")
    order = sorted(range(len(found.candidates)), key=lambda number: found.candidates[number].bypass)
    order = [number for number in order if found.candidates[number].discarded in allowed]
    kept: list[int] = []
    for estimator in ("mean_difference", "projected", "guard_orthogonal"):
        kept += [number for number in order if found.candidates[number].estimator == estimator][:BEST]
    return kept


def _gates(session: Session, behaviour: Behaviour, false_positives: float, max_prompts: int | None) -> tuple[list[Gate], list[str]]:
    """The gates that can be made: shows against guard alone, and against everything that should not change."""
    if not behaviour.guard:
        say("guard: none. Nothing says what must still show the behaviour, so the control acts on every request.")
        return [], []
    against: list[tuple[SetName, ...]] = [("guard",), ("guard", *(("lacks", "neutral") if behaviour.neutral else ("lacks",)))]
    made, refused = [], []
    for names in against:
        try:
            made.append(gate(session, behaviour, false_positives=false_positives, against=names, max_prompts=max_prompts))
        except CheckFailed as error:
            refused.append(str(error).rstrip("."))
    return made, refused


def _fires(session: Session, behaviour: Behaviour, gate: Gate, max_prompts: int | None) -> Mapping[SetName, Sequence[bool]]:
    sets = {name: behaviour.set(name, "val", max_prompts) for name in SET_NAMES}
    return {name: fires_on(session, gate, prompts) if prompts else [] for name, prompts in sets.items()}


def _option(direction: Direction, gate: Gate | None, seen: Observation, kl: float) -> Option:
    def share(outcomes: list[bool]) -> float | None:
        return sum(outcomes) / len(outcomes) if outcomes else None

    return Option(
        direction, gate, share(seen.shown("shows")) or 0.0, share(seen.shown("lacks")) or 0.0, share(seen.shown("guard")),
        share(seen.right("shows")), share(seen.right("neutral")), kl,
    )  # fmt: skip
