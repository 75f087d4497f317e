"""Confirming: the best few directions of a search run for real on val, and one of them chosen.

Proposers add controls without a gate, the plainest first; a later proposer adds something only where what was tried before leaves
something to be done. The bench tries each as it is added. A gated control gives, row by row, the controlled reply where the gate fires and the
untouched one elsewhere, so gates cost no generation of their own. One rule chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ..behaviours import SET_NAMES, Prompt, SetName, asked
from ..calibrate.dial import ADDED_TO, dial_sites
from ..controls import Control, Direction, Gate, Round
from ..errors import CheckFailed
from ..finding.find import Findings
from ..finding.gates import fires_on, fit_gate
from ..finding.gauges import ShortReplies, Tried
from ..finding.plan import SelectivePlan
from ..finding.rank import ENOUGH, MAX_RANK, by_wording, contrasting, extensible, find_again, iterate
from ..finding.select import CHANGES_NEUTRAL
from ..finding.selective import climb
from ..measure.bench import Bench, Trial
from ..progress import say, track, warn
from .decision import Decision, Option, Proposal, agreement, ordered, preference

HeldOut = dict[SetName, list[bool]]  # held-out decisions of a gate on the train and val prompts it was fitted on
Fires = dict[SetName, list[bool]]  # whether a gate fires, per prompt of the bench
BEST = 3  # directions of each estimator
PROMPTS = 24  # of each set of val, where a model is large
SCREENED = 4  # proposals of one kind that are run for real there
PUSHED = 3  # sites at which the stream is moved away from the behaviour, and the ways of doing so
DOSES = (-1.0, -1.5, -2.0)
EDITED = 2  # layers of the best directions, from which on selective edits take the class gap out; of a large model the first


def confirm(
    bench: Bench, findings: Findings, *, false_positives: float = 0.05, max_prompts: int | None = None, with_edits: bool = True
) -> Decision:
    """Try the best directions on a bench of val prompts, gated and not, at rank 1 and (where that is not enough) higher; and selective
    edits of the best (`with_edits`).

    Raises NoCandidate where no direction survived selection.
    """
    gates, refused = gates_for(bench, false_positives, max_prompts)
    fires = [(gate, decisions(bench, gate, held_out)) for gate, held_out in gates]
    few = bench if bench.session.runner.small else bench.on(telling_prompts(bench, findings))
    trials = _Trials(few, findings, [(gate, cut(fired, bench, few)) for gate, fired in fires])
    edits = (_selective_edits,) if with_edits else ()
    further = (_wordings, _found_again, _pushes, _higher_ranks)
    # Of a large model each further proposer takes minutes, and a selective edit mostly leaves it nothing to do.
    for proposer in (_shortlist, *further, *edits) if bench.session.runner.small else (_shortlist, *edits, *further):
        proposer(trials)
        if not trials.options:
            raise findings.no_candidate()
    return Decision(ordered(trials.options), tuple(trials.rounds), tuple(refused), agreement(findings, trials.options))


@dataclass
class _Trials:
    """What was tried so far: proposers look at it to know what is still to be done."""

    bench: Bench
    findings: Findings
    gates: Sequence[tuple[Gate, Fires]]
    options: list[Option] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)

    def add(self, proposal: Proposal) -> Trial:
        """The proposal tried, without a gate and behind each; told is what it does without one."""
        plain = self.bench.try_(proposal.control)
        self.options.append(Option(proposal, None, plain))
        if proposal.fitted is None:  # which has gates of its own
            self.options += [Option(proposal, gate, plain.where(fires, self.bench.untouched)) for gate, fires in self.gates]
        return plain

    @property
    def remains(self) -> bool:
        """Whether every control without a gate leaves some of the behaviour."""
        return all(option.trial.leaves_some for option in self.options if option.gate is None)

    @property
    def answered(self) -> bool:
        """Whether some control brings the right answers back; where none are known, there is nothing to bring."""
        known = [option.answers_shows for option in self.options if option.answers_shows is not None]
        return not known or max(known) >= ENOUGH


def _shortlist(trials: _Trials) -> None:
    """The best few directions of each estimator, of those that were tried on most prompts."""
    for direction in shortlist(trials.findings, bool(trials.gates)):
        trials.add(Proposal(direction))


def shortlist(findings: Findings, gated: bool) -> list[Direction]:
    """The directions that are run for real; behind a gate, those that change neutral prompts may compete too."""
    longest = max(candidate.n for candidate in findings.candidates)
    allowed = frozenset({CHANGES_NEUTRAL} if gated else ())
    order = [number for number in findings.eligible(allowed) if findings.candidates[number].n == longest]
    best = ([number for number in order if findings.candidates[number].estimator == estimator][:BEST] for estimator in findings.estimators)
    return [findings.directions[number] for numbers in best for number in numbers]


def _wordings(trials: _Trials) -> None:
    """The wordings of the behaviour apart, each along a direction of its own."""
    direction = by_wording(trials.bench, trials.findings) if trials.remains else None
    if direction is not None:
        trials.add(Proposal(direction))


def _found_again(trials: _Trials) -> None:
    """What is found again and again with the earlier directions ablated, at the rank that leaves least."""
    if not trials.remains or not extensible(trials.findings):
        return
    again = find_again(trials.bench, trials.findings, MAX_RANK)
    trials.rounds += again.rounds[1:]
    best = min(again.rounds, key=lambda r: (r.left, r.rank)).rank
    if best > 1:
        trials.add(Proposal(replace(again, basis=again.basis[:best])))


def _pushes(trials: _Trials) -> None:
    """The stream pushed away from the behaviour, which only run time can do."""
    if not trials.remains:
        return
    say("Ablation leaves the behaviour; moving the stream away from it is tried.")
    sites = dial_sites(trials.findings)[:PUSHED]
    pushes = [Proposal(site, (dose, tokens)) for site in sites for dose in DOSES for tokens in ADDED_TO]
    for proposal in _screened(trials.bench, pushes):
        trials.add(proposal)


def _screened(bench: Bench, proposals: Sequence[Proposal]) -> Sequence[Proposal]:
    """All of them for a small model. Else those that look best without whole replies: a half by what they remove less what they
    cost, which a gate may save, and a half by what they remove."""
    if bench.session.runner.small or len(proposals) <= SCREENED:
        return proposals
    gauge = ShortReplies(bench, Tried(bench.prompts["shows"], [], bench.prompts["neutral"] or bench.prompts["lacks"]).first(SCREENED * 4))
    controls = [proposal.control for proposal in proposals]
    left = [strength.share for strength in gauge.strengths("shows", controls)]
    cost = [gauge.change(control) for control in track(controls, "Screening", len(controls))]
    by_trade, by_left = (sorted(range(len(proposals)), key=key) for key in (lambda n: left[n] + cost[n], lambda n: left[n]))
    mixed = dict.fromkeys(number for pair in zip(by_trade, by_left) for number in pair)
    say(f"{SCREENED} of {len(proposals)} are run for real: those that remove most, and those that do at the least cost.")
    return [proposals[number] for number in list(mixed)[:SCREENED]]


def _higher_ranks(trials: _Trials) -> None:
    """Further directions that bring right answers back, from the best options of two different layers, readers left out."""
    order = sorted((option for option in trials.options if option.direction.write is None), key=preference, reverse=True)
    starts = order[:1] + [option for option in order if option.direction.site.layer != order[0].direction.site.layer][:1]
    for start in starts:
        if trials.answered:
            return
        direction, gained = iterate(trials.bench, start.direction, trials.findings.sets, contrasting(trials.findings))
        trials.rounds += gained
        if gained:
            trials.add(Proposal(direction))


def _selective_edits(trials: _Trials) -> None:
    """Changes of weights that keep the guard, where a gate could tell it apart; made of the directions that do most when ablated."""
    if not trials.gates:
        return
    bench = trials.bench
    # Of rank 1: a gate in every writer is freedom enough, and with three of them replies fall apart.
    plain = [option for option in trials.options if option.proposal.push is None and option.direction.write is None and len(option.direction.basis) == 1]
    best: dict[int, Direction] = {}
    for option in sorted(plain, key=preference, reverse=True):
        best.setdefault(option.direction.site.layer, option.direction)
    for direction in list(best.values())[: EDITED if bench.session.runner.small else 1]:
        climb(bench, direction, SelectivePlan(), partial(_add_fitted, trials, direction))


def _add_fitted(trials: _Trials, direction: Direction, fitted: Control) -> Trial:
    return trials.add(Proposal(direction, fitted=fitted))


def gates_for(bench: Bench, false_positives: float, max_prompts: int | None) -> tuple[list[tuple[Gate, HeldOut]], list[str]]:
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


def telling_prompts(bench: Bench, findings: Findings) -> dict[SetName, list[Prompt]]:
    """Few prompts of each set: of `shows` and `guard` those on which the untouched model shows the behaviour, since others tell nothing."""
    kept = {name: set(asked(findings.sets.val.get(name, ()))) for name in ("shows", "guard")}
    return {
        name: [prompt for prompt in prompts if name not in kept or prompt in kept[name]][:PROMPTS] for name, prompts in bench.prompts.items()
    }


def cut(fires: Fires, bench: Bench, few: Bench) -> Fires:
    """The decisions on the prompts of a bench with fewer of them."""
    at = {name: {prompt: place for place, prompt in enumerate(prompts)} for name, prompts in bench.prompts.items()}
    return {name: [fired[at[name][prompt]] for prompt in few.prompts[name]] for name, fired in fires.items()}


def decisions(bench: Bench, gate: Gate, held_out: HeldOut) -> Fires:
    """Decisions on val: held-out ones for sets the gate was fitted on, so that it is not judged by what it learnt."""
    fires: Fires = {}
    for name in SET_NAMES:
        prompts = bench.prompts[name]
        if not prompts:
            fires[name] = []
        else:
            fires[name] = held_out[name][-len(prompts) :] if name in held_out else fires_on(bench.ledger, gate, prompts)
    return fires
