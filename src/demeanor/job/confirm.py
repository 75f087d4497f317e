"""Confirming: the best few directions of a search run for real on val, and one of them chosen.

Proposers yield controls without a gate, the plainest first; a later proposer is asked only where what was tried before leaves
something to be done. The bench tries each. A gated control gives, row by row, the controlled reply where the gate fires and the
untouched one elsewhere, so gates cost no generation of their own. One rule chooses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from ..behaviours import SET_NAMES, SetName
from ..calibrate.dial import ADDED_TO, dial_sites
from ..controls import Control, Direction, Gate, Round, ablate, add
from ..errors import CheckFailed, NoCandidate
from ..finding.find import Findings
from ..finding.gates import fires_on, fit_gate
from ..finding.rank import ENOUGH, MAX_RANK, by_wording, contrasting, extensible, find_again, iterate
from ..finding.select import CHANGES_NEUTRAL, table
from ..measure.bench import Bench, Trial
from ..progress import say, warn
from ..runtime.intervene import Tokens

HeldOut = dict[SetName, list[bool]]  # held-out decisions of a gate on the train and val prompts it was fitted on
Fires = dict[SetName, list[bool]]  # whether a gate fires, per prompt of the bench
BEST = 3  # directions of each estimator
LEFT = 0.02  # of shows still exhibiting the behaviour, above which more than one direction ablated is tried
PUSHED = 3  # sites at which the stream is moved away from the behaviour, and the ways of doing so
DOSES = (-1.0, -1.5, -2.0)


@dataclass(frozen=True)
class Proposal:
    """A control without a gate: a direction ablated, or added at a dose (in class gaps) to some tokens."""

    direction: Direction
    push: tuple[float, Tokens] | None = None

    @property
    def control(self) -> Control:
        return ablate(self.direction) if self.push is None else add(self.direction, *self.push)

    def __str__(self) -> str:
        rank = f", rank {len(self.direction.basis)}" if len(self.direction.basis) > 1 else ""
        how = "" if self.push is None else f", added at dose {self.push[0]:g}"
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
        comparison = (
            f"on val it shows {best.shows_rate:.2f} (guard kept {_text(best.guard_rate)}, right answers {_text(best.answers_shows)})"
        )
        comparison += f"; the best {'without a gate' if best.gate else 'with one'} shows {other.shows_rate:.2f} (guard kept {_text(other.guard_rate)}, right answers {_text(other.answers_shows)})"
        return f"{'A gate' if best.gate else 'No gate'}: {comparison}."


def _text(rate: float | None) -> str:
    return "none" if rate is None else f"{rate:.2f}"


def confirm(bench: Bench, findings: Findings, *, false_positives: float = 0.05, max_prompts: int | None = None) -> Decision:
    """Try the best directions on a bench of val prompts, gated and not, at rank 1 and (where that is not enough) higher.

    Raises NoCandidate where no direction survived selection.
    """
    gates, refused = _gates(bench, false_positives, max_prompts)
    trials = _Trials(bench, findings, [(gate, _fires(bench, gate, held_out)) for gate, held_out in gates])
    for proposer in (_shortlist, _wordings, _found_again, _pushes, _higher_ranks):
        for proposal in proposer(trials):
            trials.add(proposal)
        if not trials.options:
            raise NoCandidate(table([candidate.row() for candidate in findings.candidates], findings.layer_limit))
    return Decision(tuple(sorted(trials.options, key=_preference, reverse=True)), tuple(trials.rounds), tuple(refused))


def _preference(option: Option) -> tuple[float, bool, int, int, float]:
    """The rule. Merit first; among equals no gate (it can be baked), the gate against more sets, lower rank, less change to ordinary prompts."""
    against = len(option.gate.against) if option.gate else 0
    return round(option.merit, 3), option.gate is None, against, -len(option.direction.basis), -option.trial.drift.first_nats


@dataclass
class _Trials:
    """What was tried so far: proposers look at it to know what is still to be done."""

    bench: Bench
    findings: Findings
    gates: Sequence[tuple[Gate, Fires]]
    options: list[Option] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)

    def add(self, proposal: Proposal) -> None:
        """The proposal tried, without a gate and behind each."""
        plain = self.bench.try_(proposal.control)
        self.options.append(Option(proposal, None, plain))
        self.options += [Option(proposal, gate, plain.where(fires, self.bench.untouched)) for gate, fires in self.gates]

    @property
    def remains(self) -> bool:
        """Whether no control without a gate removes the behaviour."""
        return min(option.shows_rate for option in self.options if option.gate is None) > LEFT

    @property
    def answered(self) -> bool:
        """Whether some control brings the right answers back; where none are known, there is nothing to bring."""
        known = [option.answers_shows for option in self.options if option.answers_shows is not None]
        return not known or max(known) >= ENOUGH


def _shortlist(trials: _Trials) -> Iterator[Proposal]:
    """The best few directions of each estimator."""
    yield from map(Proposal, shortlist(trials.findings, bool(trials.gates)))


def shortlist(findings: Findings, gated: bool) -> list[Direction]:
    """The directions that are run for real; behind a gate, those that change neutral prompts may compete too."""
    order = findings.eligible(frozenset({CHANGES_NEUTRAL} if gated else ()))
    best = ([number for number in order if findings.candidates[number].estimator == estimator][:BEST] for estimator in findings.estimators)
    return [findings.directions[number] for numbers in best for number in numbers]


def _wordings(trials: _Trials) -> Iterator[Proposal]:
    """The wordings of the behaviour apart, each along a direction of its own."""
    direction = by_wording(trials.bench, trials.findings) if trials.remains else None
    if direction is not None:
        yield Proposal(direction)


def _found_again(trials: _Trials) -> Iterator[Proposal]:
    """What is found again and again with the earlier directions ablated, at the rank that leaves least."""
    if not trials.remains or not extensible(trials.findings):
        return
    again = find_again(trials.bench, trials.findings, MAX_RANK)
    trials.rounds += again.rounds[1:]
    best = min(again.rounds, key=lambda r: (r.left, r.rank)).rank
    if best > 1:
        yield Proposal(replace(again, basis=again.basis[:best]))


def _pushes(trials: _Trials) -> Iterator[Proposal]:
    """The stream pushed away from the behaviour, which only run time can do."""
    if not trials.remains:
        return
    say("Ablation leaves the behaviour; moving the stream away from it is tried.")
    for direction in dial_sites(trials.findings)[:PUSHED]:
        for dose in DOSES:
            for tokens in ADDED_TO:
                yield Proposal(direction, (dose, tokens))


def _higher_ranks(trials: _Trials) -> Iterator[Proposal]:
    """Further directions that bring right answers back, from the best options of two different layers, readers left out."""
    order = sorted((option for option in trials.options if option.direction.write is None), key=_preference, reverse=True)
    starts = order[:1] + [option for option in order if option.direction.site.layer != order[0].direction.site.layer][:1]
    for start in starts:
        if trials.answered:
            return
        direction, gained = iterate(trials.bench, start.direction, trials.findings.sets, contrasting(trials.findings))
        trials.rounds += gained
        if gained:
            yield Proposal(direction)


def _gates(bench: Bench, false_positives: float, max_prompts: int | None) -> tuple[list[tuple[Gate, HeldOut]], list[str]]:
    """The gates that can be made, with their held-out decisions, and why others cannot: against guard alone, and against all."""
    behaviour = bench.behaviour
    if not behaviour.guard:
        warn("guard: none. Nothing says what must still show the behaviour, so the control acts on every request.")
        return [], []
    everything: tuple[SetName, ...] = ("guard", "lacks", "neutral") if behaviour.neutral else ("guard", "lacks")
    sides: tuple[tuple[SetName, ...], ...] = (("guard",), everything)
    gates, refused = [], []
    for against in sides:
        try:
            gates.append(
                fit_gate(
                    bench.session, behaviour, false_positives=false_positives, against=against, max_prompts=max_prompts, ledger=bench.ledger
                )
            )
        except CheckFailed as error:
            refused.append(str(error).rstrip("."))
    return gates, refused


def _fires(bench: Bench, gate: Gate, held_out: HeldOut) -> Fires:
    """Decisions on val: held-out ones for sets the gate was fitted on, so that it is not judged by what it learnt."""
    fires: Fires = {}
    for name in SET_NAMES:
        prompts = bench.prompts[name]
        if not prompts:
            fires[name] = []
        else:
            fires[name] = held_out[name][-len(prompts) :] if name in held_out else fires_on(bench.ledger, gate, prompts)
    return fires
