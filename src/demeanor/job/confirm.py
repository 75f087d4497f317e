"""Deciding what control to use: the best few directions, with and without a gate, judged by whole replies on val.

Selection ranks directions by the first reply token. Here the best few are run for real, plain against
projected against higher rank, each without a gate and behind the gates that can be made. A gated control
gives, row by row, the controlled reply where the gate fires and the untouched one elsewhere, so gates cost
no generation of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..algebra.divergence import kl_divergence
from ..behaviours import SET_NAMES, Behaviour, SetName
from ..calibrate.dial import ADDED_TO, dial_sites
from ..controls import Control, Direction, Gate, Round, ablate, add
from ..detect import make_detector
from ..errors import CheckFailed, NoCandidate
from ..finding.find import Findings
from ..finding.gates import fires_on, fit_gate
from ..finding.rank import ENOUGH, MAX_RANK, by_wording, contrasting, extensible, find_again, iterate
from ..finding.select import CHANGES_NEUTRAL, table
from ..measure import Observation, observe
from ..measure.observation import reply_budget
from ..models import Session
from ..progress import say
from ..runtime.intervene import Tokens

Held = dict[SetName, list[bool]]  # held-out decisions of a gate on the train and val prompts it was fitted on
BEST = 3  # directions of each estimator
LEFT = 0.02  # of shows still exhibiting the behaviour, above which more than one direction ablated is tried
Push = tuple[float, Tokens]
PUSHED = 3  # sites at which the stream is moved away from the behaviour, and the ways of doing so
PUSHES: tuple[Push, ...] = tuple((dose, tokens) for dose in (-1.0, -1.5, -2.0) for tokens in ADDED_TO)


@dataclass(frozen=True)
class Option:
    """One control that was tried on val: its rates there (None where the behaviour has no such prompts).

    The direction is ablated, or added as `push` says.
    """

    direction: Direction
    push: Push | None
    gate: Gate | None
    shows_rate: float
    lacks_rate: float
    guard_rate: float | None
    answers_shows: float | None
    answers_neutral: float | None
    kl: float

    @property
    def control(self) -> Control:
        plain = acting(self.direction, self.push)
        return plain.when(self.gate) if self.gate else plain

    @property
    def merit(self) -> float:
        """Mean of what should be high, less the KL on neutral prompts where it acts: the figure options are ranked by."""
        goods = [1 - self.shows_rate, 1 - self.lacks_rate, self.guard_rate, self.answers_shows, self.answers_neutral]
        known = [good for good in goods if good is not None]
        return sum(known) / len(known) - self.kl

    def __str__(self) -> str:
        rank = f", rank {len(self.direction.basis)}" if len(self.direction.basis) > 1 else ""
        how = "" if self.push is None else f", added at dose {self.push[0]:g}"
        return f"{self.direction.estimator}, {self.direction.site}{rank}{how}; " + (f"gate: {self.gate}" if self.gate else "no gate")


def acting(direction: Direction, push: Push | None) -> Control:
    """The direction ablated, or added at a dose to some tokens."""
    return ablate(direction) if push is None else add(direction, *push)


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
    session: Session, behaviour: Behaviour, found: Findings, *, false_positives: float = 0.05, max_prompts: int | None = None
) -> Decision:
    """Try the best directions on val, gated and not, at rank 1 and (where answers do not come back) higher."""
    gates, refused = _gates(session, behaviour, false_positives, max_prompts)
    trial = _Trial(session, behaviour, gates, found.after, max_prompts)
    tried = [option for number in _shortlist(found, bool(gates)) for option in trial.options(found.directions[number])]
    if not tried:
        rows = [candidate.row() for candidate in found.candidates]
        raise NoCandidate(table(rows, found.layer_limit))
    more, rounds = _what_is_left(session, behaviour, found, trial, tried)
    tried += more
    for start in _starts(tried):
        if max(option.answers_shows or 0.0 for option in tried) >= ENOUGH:
            break
        direction, gained = iterate(session, start.direction, found.sets, reply_budget(session, behaviour), contrasting(found))
        rounds += gained
        if gained:
            tried += trial.options(direction)
    return Decision(tuple(sorted(tried, key=_preference, reverse=True)), tuple(rounds), tuple(refused))


def _what_is_left(
    session: Session, behaviour: Behaviour, found: Findings, trial: _Trial, tried: Sequence[Option]
) -> tuple[list[Option], list[Round]]:
    """Further options where no direction ablated alone removes the behaviour: its wordings apart, found again and again
    at higher rank, and the stream pushed away from it. Each is tried only if those before leave more than 2 %."""
    made: list[Option] = []
    rounds: list[Round] = []
    detector = make_detector(behaviour.detect, session)

    def remains() -> bool:
        return min(option.shows_rate for option in [*tried, *made] if option.gate is None) > LEFT

    if remains():
        direction = by_wording(session, found, detector)
        made += trial.options(direction) if direction is not None else []
    if remains() and extensible(found):
        again = find_again(session, found, detector, MAX_RANK)
        rounds = list(again.rounds[1:])
        best = min(again.rounds, key=lambda r: (r.left, r.rank)).rank  # type: ignore[arg-type, return-value]
        made += trial.options(replace(again, basis=again.basis[:best])) if best > 1 else []
    if remains():
        say("Ablation leaves the behaviour; moving the stream away from it is tried.")
        made += [option for direction in dial_sites(found)[:PUSHED] for push in PUSHES for option in trial.options(direction, push)]
    return made, rounds


class _Trial:
    """Runs directions on the val prompts, and says what each gate would make of them."""

    def __init__(
        self, session: Session, behaviour: Behaviour, gates: Sequence[tuple[Gate, Held]], after: Sequence[int], max_prompts: int | None
    ) -> None:
        self.session, self.behaviour, self.after, self.max_prompts = session, behaviour, after, max_prompts
        self.base = observe(session, behaviour, split="val", max_prompts=max_prompts)
        self.elsewhere: SetName = "neutral" if self.base.sets["neutral"] else "lacks"
        self.prompts = [outcome.prompt for outcome in self.base.sets[self.elsewhere]]
        self.untouched = session.logits(self.prompts, after).double().log_softmax(-1)
        self.gates = [(gate, self._fires(gate, held)) for gate, held in gates]

    def options(self, direction: Direction, push: Push | None = None) -> list[Option]:
        """The direction, ablated or pushed along, without a gate and behind each."""
        control = acting(direction, push)
        plain = observe(self.session, self.behaviour, control, split="val", max_prompts=self.max_prompts)
        with self.session.controlled(control):
            edited = self.session.logits(self.prompts, self.after).double().log_softmax(-1)
        kl = kl_divergence(self.untouched, edited)
        made = [_option(direction, push, None, plain, float(kl.mean()))]
        for gate, fires in self.gates:
            through = torch.tensor(fires[self.elsewhere], dtype=kl.dtype)
            made.append(_option(direction, push, gate, plain.where(fires, self.base), float((kl * through).mean())))
        return made

    def _fires(self, gate: Gate, held: Held) -> dict[SetName, list[bool]]:
        """Decisions on val: held-out ones for sets the gate was fitted on, so that it is not judged by what it learnt."""
        fires: dict[SetName, list[bool]] = {}
        for name in SET_NAMES:
            prompts = [outcome.prompt for outcome in self.base.sets[name]]
            if not prompts:
                fires[name] = []
            else:
                fires[name] = held[name][-len(prompts) :] if name in held else fires_on(self.session, gate, prompts)
        return fires


def _preference(option: Option) -> tuple[float, bool, int, int, float]:
    """Merit first; among equals no gate (it can be baked), the gate against more sets, lower rank, less change to neutral prompts."""
    against = len(option.gate.against) if option.gate else 0
    return round(option.merit, 3), option.gate is None, against, -len(option.direction.basis), -option.kl


def _starts(tried: Sequence[Option]) -> list[Option]:
    """Where to iterate from when right answers are missing: the best options of two different layers, readers left out."""
    order = sorted((option for option in tried if option.direction.write is None), key=_preference, reverse=True)
    if not order or all(option.answers_shows is None for option in tried):
        return []
    other = next((option for option in order if option.direction.site.layer != order[0].direction.site.layer), None)
    return [order[0], *([other] if other else [])]


def _shortlist(found: Findings, gated: bool) -> list[int]:
    """The best few directions of each estimator; behind a gate, those that change neutral prompts may compete too."""
    order = found.eligible(frozenset({CHANGES_NEUTRAL} if gated else ()))
    kept: list[int] = []
    for estimator in found.estimators:
        kept += [number for number in order if found.candidates[number].estimator == estimator][:BEST]
    return kept


def _gates(
    session: Session, behaviour: Behaviour, false_positives: float, max_prompts: int | None
) -> tuple[list[tuple[Gate, Held]], list[str]]:
    """The gates that can be made, with their held-out decisions, and why others cannot: against guard alone, and against all."""
    if not behaviour.guard:
        say("guard: none. Nothing says what must still show the behaviour, so the control acts on every request.")
        return [], []
    everything: tuple[SetName, ...] = ("guard", "lacks", "neutral") if behaviour.neutral else ("guard", "lacks")
    made, refused = [], []
    for names in (("guard",), everything):
        try:
            made.append(fit_gate(session, behaviour, false_positives=false_positives, against=names, max_prompts=max_prompts))  # type: ignore[arg-type]
        except CheckFailed as error:
            refused.append(str(error).rstrip("."))
    return made, refused


def _option(direction: Direction, push: Push | None, gate: Gate | None, seen: Observation, kl: float) -> Option:
    def share(outcomes: list[bool]) -> float | None:
        return sum(outcomes) / len(outcomes) if outcomes else None

    return Option(
        direction, push, gate, share(seen.shown("shows")) or 0.0, share(seen.shown("lacks")) or 0.0, share(seen.shown("guard")),
        share(seen.right("shows")), share(seen.right("neutral")), kl,
    )  # fmt: skip
