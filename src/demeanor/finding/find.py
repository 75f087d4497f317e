"""Finding where a model carries a behaviour: filter, capture, estimate, test against chance, select."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..algebra import directions
from ..algebra.schedule import layer_limit
from ..behaviours import Behaviour, BehaviourLike, as_behaviour
from ..controls.direction import Candidate, Direction
from ..errors import DataError, NoCandidate
from ..measure.bench import Bench
from ..measure.ledger import Ledger
from ..models import Session, Site, StreamedSession
from ..progress import say, warn
from ..runtime.positions import REPLY, Position
from .classes import Chance, Classes
from .estimators import Estimate, named_estimators, usual_estimators
from .evaluate import Evaluation
from .filter import Sets, filter_prompts, with_own_replies
from .plan import FindPlan
from .select import DOES_NOT_INDUCE, INDUCE_MIN, RankBy, rank_key, table
from .signal import Signal, find_signal
from .streamed import find_streamed

POSITIONS = 5  # of the template after the user's message, at most
LITTLE = 1.0  # log-odds by which ablation must lower the behaviour to be called removing


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything one search saw: `directions` with their `candidates` (what each did), in the same order."""

    directions: tuple[Direction, ...]
    candidates: tuple[Candidate, ...]
    sets: Sets
    layer_limit: int
    rank_by: RankBy
    signal: Signal  # what tells the behaviour before a whole reply is there
    untouched: float  # bypass of the untouched model
    separation: Tensor  # held-out d' of the mean difference [position, layer]

    @property
    def after(self) -> tuple[int, ...]:
        """Reply tokens that every prompt was forced through before it was read: the same for all directions."""
        return self.directions[0].after

    @property
    def estimators(self) -> list[str]:
        """The names of the estimators whose directions were tried, in order."""
        return list(dict.fromkeys(candidate.estimator for candidate in self.candidates))

    @property
    def order(self) -> list[int]:
        """The numbers of all candidates, discarded ones too, best first: those that were tried on most prompts, which the others lost to."""

        def key(number: int) -> tuple[float, ...]:
            candidate = self.candidates[number]
            return -candidate.n, *rank_key(candidate.row(), self.rank_by)

        return sorted(range(len(self.candidates)), key=key)

    def eligible(self, allowed: frozenset[str] = frozenset()) -> list[int]:
        """The numbers of candidates that survived selection, best first; those discarded only for `allowed` reasons too.

        A behaviour that a direction does not bring about may still be removed along it, so that discards only where directions are
        ranked by what they induce; where nothing else is left, not even there.
        """

        def left(allowed: frozenset[str]) -> list[int]:
            return [number for number in self.order if set(self.candidates[number].discarded) <= allowed]

        return left(allowed) or left(allowed | {DOES_NOT_INDUCE})

    def tell(self) -> None:
        """Says aloud what selection could not find: a direction that induces, or one that removes anything."""
        numbers = self.eligible()
        if not numbers:
            return
        induced = [self.candidates[number].induce for number in numbers if not math.isnan(self.candidates[number].induce)]
        if induced and max(induced) < INDUCE_MIN:
            say("No direction that may be used induces the behaviour at dose 1; what removes it is looked for all the same.")
        best = min(numbers, key=lambda number: self.candidates[number].bypass)
        late = min(range(len(self.candidates)), key=lambda number: self.candidates[number].bypass)
        if self.candidates[best].bypass > self.untouched - LITTLE and self.candidates[late].bypass < self.untouched - LITTLE:
            reasons = ", ".join(self.candidates[late].discarded)
            warn(
                f"Ablating the directions that may be used removes little; {self.candidates[late].site} would remove more, but was discarded ({reasons}); see --layer."
            )

    def no_candidate(self) -> NoCandidate:
        """The error that says what became of every candidate."""
        return NoCandidate(table([c.row() for c in self.candidates], [c.discarded for c in self.candidates]))

    def ranked(self) -> list[Direction]:
        """Directions that survived selection, best first; NoCandidate with the table when there is none."""
        numbers = self.eligible()
        if not numbers:
            raise self.no_candidate()
        return [self.directions[number] for number in numbers]


def find(session: Session | StreamedSession, behaviour: BehaviourLike, plan: FindPlan | None = None, **options: Any) -> Direction:
    """The direction that carries a behaviour, selected among estimators, layers and template positions.

    Of a model whose weights stay on disk (`open_streamed`) it is selected by statistics alone: see `find_streamed`.
    `options` are the fields of `FindPlan` by name, in place of a plan. The usual estimators are all tried everywhere, unless other
    `estimators` are named: of the package, of an installed package, or a function in a file as `path.py:name`. `layer` restricts the
    candidates to one layer. `rank_by` is "trade_off" (most of the behaviour removed, less what
    changes elsewhere; the usual one), "bypass" (least of it left), "induce" (most of it at dose +1; where `shows` and `lacks` are replies) or "gap" (means furthest apart). Raises
    NoUsableDirection when the classes differ no more than chance allows, NoCandidate when every candidate is discarded.
    """
    plan = FindPlan.given(plan, options, "find")
    if isinstance(session, StreamedSession):
        return find_streamed(session, behaviour, plan).directions[0]
    return search_directions(session, behaviour, plan).ranked()[0]


def search_directions(
    session: Session, behaviour: BehaviourLike, plan: FindPlan | None = None, *, ledger: Ledger | None = None, **options: Any
) -> Findings:
    """Every candidate direction, tried; see `find`."""
    plan = FindPlan.given(plan, options, "find")
    layer, max_prompts = plan.layer, plan.max_prompts
    behaviour = as_behaviour(behaviour, session)
    behaviour.needs_prompts()
    tried = named_estimators(behaviour, plan.estimators or usual_estimators(behaviour))
    bench = Bench(session, behaviour, "val", ledger, max_prompts=max_prompts)
    n_layers = session.layout.n_layers
    if layer is not None and not 0 <= layer < n_layers:
        raise DataError(f"{session.name} has layers 0 to {n_layers - 1}; there is no layer {layer}.")
    sets = filter_prompts(bench, max_prompts)
    if plan.read == "replies" and not sets.replied:
        sets = with_own_replies(bench, sets)
    signal = Signal((), torch.zeros(session.vocabulary), False) if sets.replied else find_signal(bench.ledger, sets)
    if signal.after:
        say(f"What the model will do is settled after {session.tokenizer.decode(list(signal.after))!r}; directions are looked for there.")
    # Replies are read over their tokens, prompts at their ends.
    at_ends = range(-min(POSITIONS, session.template_length() + len(signal.after)), 0)
    positions: list[Position] = [REPLY] if sets.replied else list(at_ends)
    sites = [Site(at, "resid_post", position) for position in positions for at in range(n_layers)]
    classes = Classes(bench.ledger, sets, sites, signal.after)
    with session.runner.threads():
        chance = classes.against_chance()
    # A layer that was asked for is never too late.
    limit = layer_limit(n_layers) if layer is None else n_layers
    tried_directions = [
        _direction(session, behaviour, classes, chance, number, estimator, vector)
        for number, site in enumerate(sites)
        if layer is None or site.layer == layer
        for estimator, vector in classes.estimates(number, tried)
    ]
    by = plan.rank_by or ("induce" if sets.replied else "trade_off")
    evaluation = Evaluation(bench, sets, signal, limit, by)
    tried_directions, seen = evaluation.candidates(tried_directions, plan.trying or ("every" if session.runner.small else "halving"))
    candidates = tuple(seen)
    tried_directions = [replace(item, candidates=candidates) for item in tried_directions]
    findings = Findings(
        directions=tuple(tried_directions),
        candidates=candidates,
        sets=sets,
        layer_limit=limit,
        rank_by=by,
        signal=signal,
        untouched=evaluation.untouched,
        separation=chance.separation.reshape(len(positions), n_layers),
    )
    findings.tell()
    return findings


def _direction(
    session: Session, behaviour: Behaviour, classes: Classes, chance: Chance, number: int, estimator: str, estimate: Estimate
) -> Direction:
    vector = estimate.read
    along = {name: values[:, number] @ vector for name, values in classes.val.items()}
    return Direction(
        basis=vector.float()[None], site=classes.sites[number], estimator=estimator, shows=classes.moments("shows", number), lacks=classes.moments("lacks", number),
        separation=float(directions.separation(along["shows"], along["lacks"])), auroc=float(directions.auroc(along["shows"], along["lacks"])),
        split_half_cosine=float(chance.cosine[number]), p=chance.p, candidates=(), layout=session.layout, model_name=session.name, behaviour=behaviour.name, after=classes.after,
        layers=classes.layers(classes.sites[number].position), write=None if estimate.write is None else estimate.write.float()[None],
    )  # fmt: skip
