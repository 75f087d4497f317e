"""Finding where a model carries a behaviour: filter, capture, estimate, test against chance, select."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .algebra import directions
from .algebra.divergence import kl_divergence
from .algebra.moments import Moments
from .behaviours import Behaviour, Prompt, asked
from .controls import ablate, add
from .controls.direction import Candidate, Direction, Estimator
from .detect import Detector, make_detector, present
from .errors import DataError, NoCandidate, NoUsableDirection
from .estimates import ESTIMATORS, USUAL, Estimate
from .models import Session, Site
from .models.capture import REPLY
from .progress import say, track
from .select import DOES_NOT_INDUCE, RankBy, layer_limit, rank_key, table, why_not
from .sets import Sets, filtered

POSITIONS = 5  # of the template after the user's message, at most
SELECTION_PROMPTS = 64  # of each set, in every evaluation of a candidate
P_MAX, COSINE_MIN = 0.01, 0.3
SEPARATES = 0.8  # AUROC that the opening log-odds must reach to stand for the behaviour
LITTLE = 1.0  # log-odds by which ablation must lower the behaviour to be called removing
OPENINGS = 6  # reply tokens that prompts are forced through: fewer than this


@dataclass(frozen=True)
class Found:
    """Everything one search saw: `directions` with their `candidates` (what each did), in the same order."""

    directions: tuple[Direction, ...]
    candidates: tuple[Candidate, ...]
    sets: Sets
    layer_limit: int
    rank_by: RankBy
    untouched: float  # bypass of the untouched model
    separation: Tensor  # held-out d' of the mean difference [position, layer]

    @property
    def after(self) -> tuple[int, ...]:
        """Reply tokens that every prompt was forced through before it was read: the same for all directions."""
        return self.directions[0].after

    @property
    def order(self) -> list[int]:
        """The numbers of all candidates, discarded ones too, best first."""
        return sorted(range(len(self.candidates)), key=lambda number: rank_key(self.candidates[number].row(), self.rank_by))

    def eligible(self, allowed: frozenset[str] = frozenset()) -> list[int]:
        """The numbers of candidates that survived selection, best first; those discarded only for `allowed` reasons too.

        Where all that is left was discarded because it does not induce, that is allowed: a behaviour that no one direction
        brings about may still be removed along one.
        """

        def left(allowed: frozenset[str]) -> list[int]:
            return [number for number in self.order if set(self.candidates[number].discarded) <= allowed]

        return left(allowed) or left(allowed | {DOES_NOT_INDUCE})

    def tell(self) -> None:
        """Says aloud what selection could not find: a direction that induces, or one that removes anything."""
        numbers = self.eligible()
        if not numbers:
            return
        if DOES_NOT_INDUCE in self.candidates[numbers[0]].discarded:
            say("No direction that may be used induces the behaviour at dose 1; what removes it is looked for all the same.")
        best = min(numbers, key=lambda number: self.candidates[number].bypass)
        late = min(range(len(self.candidates)), key=lambda number: self.candidates[number].bypass)
        if self.candidates[best].bypass > self.untouched - LITTLE and self.candidates[late].bypass < self.untouched - LITTLE:
            told = ", ".join(self.candidates[late].discarded)
            say(
                f"Ablating the directions that may be used removes little; {self.candidates[late].site} would remove more, but was discarded ({told}); see --layer."
            )

    def ranked(self) -> list[Direction]:
        """Directions that survived selection, best first; NoCandidate with the table when there is none."""
        numbers = self.eligible()
        if not numbers:
            raise NoCandidate(table([candidate.row() for candidate in self.candidates], self.layer_limit))
        return [self.directions[number] for number in numbers]


def find(
    session: Session,
    behaviour: Behaviour,
    *,
    layer: int | None = None,
    max_prompts: int | None = None,
    rank_by: RankBy | None = None,
    estimators: Sequence[Estimator] = USUAL,
) -> Direction:
    """The direction that carries a behaviour, selected among estimators, layers and template positions.

    Mean difference and projected are both tried everywhere, guard-orthogonal too where there is a guard set, unless other `estimators`
    are named. `layer` restricts the candidates to one layer. `rank_by` is "bypass" (least of the behaviour left; the usual one),
    "induce" (most of it at dose +1; where `shows` and `lacks` are replies) or "gap" (means furthest apart). Raises
    NoUsableDirection when the classes differ no more than chance allows, NoCandidate when every candidate is discarded.
    """
    return search_directions(session, behaviour, layer=layer, max_prompts=max_prompts, rank_by=rank_by, estimators=estimators).ranked()[0]


def search_directions(
    session: Session,
    behaviour: Behaviour,
    *,
    layer: int | None = None,
    max_prompts: int | None = None,
    rank_by: RankBy | None = None,
    estimators: Sequence[Estimator] = USUAL,
) -> Found:
    """Every candidate direction, tried; see `find`."""
    behaviour.needs_prompts()
    _refuse_estimators(behaviour, estimators)
    behaviour.must_fit(session.name, session.organism)
    n_layers = session.layout.n_layers
    if layer is not None and not 0 <= layer < n_layers:
        raise DataError(f"{session.name} has layers 0 to {n_layers - 1}; there is no layer {layer}.")
    detector = make_detector(behaviour.detect, session)
    sets = filtered(session, behaviour, detector, max_prompts)
    signal = Signal((), torch.zeros(session.vocabulary), False) if behaviour.has_replies else find_signal(session, sets)
    if signal.after:
        say(f"What the model will do is settled after {session.tokenizer.decode(list(signal.after))!r}; directions are looked for there.")
    # Replies are read over their tokens, prompts at their ends.
    at_ends = range(-min(POSITIONS, session.template_length() + len(signal.after)), 0)
    positions = [REPLY] if behaviour.has_replies else list(at_ends)
    sites = [Site(at, "resid_post", position) for position in positions for at in range(n_layers)]
    classes = _Classes(session, sets, sites, signal.after)
    with session.threads():
        chance = classes.against_chance()
    # A layer that was asked for is never too late.
    limit = layer_limit(n_layers) if layer is None else n_layers
    made = [
        _direction(session, behaviour, classes, chance, number, estimator, vector)
        for number, site in enumerate(sites)
        if layer is None or site.layer == layer
        for estimator, vector in classes.estimates(number, estimators)
    ]
    evaluation = _Evaluation(session, behaviour, sets, detector, signal)
    candidates = tuple(evaluation.candidate(item, limit) for item in track(made, "Trying directions", len(made)))
    made = [replace(item, candidates=candidates) for item in made]
    by = rank_by or ("induce" if behaviour.has_replies else "bypass")
    found = Found(tuple(made), candidates, sets, limit, by, evaluation.untouched, chance.separation.reshape(len(positions), n_layers))
    found.tell()
    return found


@dataclass(frozen=True)
class _Chance:
    """Of the mean difference at every site: held-out separation, split-half cosine [site], and one p."""

    separation: Tensor
    cosine: Tensor
    p: float


class _Classes:
    """Activations of the classes at all sites, and what is estimated from them. float64 throughout."""

    def __init__(self, session: Session, sets: Sets, sites: Sequence[Site], after: Sequence[int]) -> None:
        self.sites, self.after = tuple(sites), tuple(after)
        self._layers: dict[int, tuple[Moments, Moments]] = {}
        self.train = {name: session.capture(prompts, sites, after).values.double() for name, prompts in sets.train.items() if prompts}
        self.val = {name: session.capture(sets.val[name], sites, after).values.double() for name in ("shows", "lacks")}

    def moments(self, name: str, number: int) -> Moments:
        return Moments.of(self.train[name][:, number])

    def layers(self, position: int) -> tuple[Moments, Moments]:
        """Moments of shows and lacks at all layers and one position: [layer, d_model]."""
        if position not in self._layers:
            numbers = [number for number, site in enumerate(self.sites) if site.position == position]
            shows, lacks = (Moments.of(self.train[name][:, numbers]) for name in ("shows", "lacks"))
            self._layers[position] = shows, lacks
        return self._layers[position]

    def estimates(self, number: int, wanted: Sequence[Estimator]) -> list[tuple[Estimator, Estimate]]:
        """Candidates at one site; those of which nothing is left are not there."""
        values = {name: rows[:, number] for name, rows in self.train.items()}
        made = [(estimator, ESTIMATORS[estimator](values)) for estimator in wanted if estimator != "guard_orthogonal" or "guard" in values]
        return [(estimator, estimate) for estimator, estimate in made if estimate.read.any()]

    def against_chance(self) -> _Chance:
        """Raises NoUsableDirection when the best site is no better than shuffled labels, or not stable."""
        rng = torch.Generator().manual_seed(0)
        difference = directions.mean_difference(self.train["shows"].mean(0), self.train["lacks"].mean(0))
        along = {name: torch.einsum("nsd,sd->ns", values, difference) for name, values in self.val.items()}
        separation = directions.separation(along["shows"], along["lacks"])
        cosine = directions.split_half_cosine(self.train["shows"], self.train["lacks"], rng)
        p = directions.permutation_p(*_labelled(self.train), *_labelled(self.val), rng)
        best = int(separation.argmax())
        if p > P_MAX or not float(cosine[best]) >= COSINE_MIN:  # a cosine that is no number is none
            raise NoUsableDirection(
                f"No usable direction: at the best site ({self.sites[best]}) p = {p:.3f} (at most {P_MAX}) and the split-half cosine"
                f" is {float(cosine[best]):.2f} (at least {COSINE_MIN}); use more prompts, or sets that differ in the behaviour only."
            )
        return _Chance(separation, cosine, p)


def _refuse_estimators(behaviour: Behaviour, estimators: Sequence[Estimator]) -> None:
    unknown = next((name for name in estimators if name not in ESTIMATORS), None)
    if unknown is not None or not estimators:
        raise DataError(f"There is no estimator {unknown!r}; use one or more of {', '.join(ESTIMATORS)}.")
    if "paired_pca" in estimators and not behaviour.pairs:
        raise DataError(
            f"paired_pca needs pairs, and {behaviour.name!r} does not say that its rows are; add `pairs: true`, or leave it out."
        )


def _labelled(classes: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Values of shows and lacks one below the other, and which rows are shows."""
    sizes = len(classes["shows"]), len(classes["lacks"])
    labels = torch.cat([torch.ones(sizes[0], dtype=torch.bool), torch.zeros(sizes[1], dtype=torch.bool)])
    return torch.cat([classes["shows"], classes["lacks"]]), labels


def _direction(
    session: Session, behaviour: Behaviour, classes: _Classes, chance: _Chance, number: int, estimator: Estimator, estimate: Estimate
) -> Direction:
    vector = estimate.read
    along = {name: values[:, number] @ vector for name, values in classes.val.items()}
    return Direction(
        vector.float()[None], classes.sites[number], estimator, classes.moments("shows", number), classes.moments("lacks", number),
        float(directions.separation(along["shows"], along["lacks"])), float(directions.auroc(along["shows"], along["lacks"])),
        float(chance.cosine[number]), chance.p, (), session.layout, session.name, behaviour.name, classes.after,
        layers=classes.layers(classes.sites[number].position), write=None if estimate.write is None else estimate.write.float()[None],
    )  # fmt: skip


@dataclass(frozen=True)
class Signal:
    """What tells, before a whole reply is there, that the behaviour comes: the next token after `after`.

    opening [vocab]: tokens that then stand for the behaviour; `tells` is whether their log-odds separate the classes.
    """

    after: tuple[int, ...]
    opening: Tensor
    tells: bool


def find_signal(session: Session, sets: Sets) -> Signal:
    """The shortest opening of ordinary replies after which the next token separates `shows` from `lacks` on val.

    Usually the empty one. Where both classes begin alike ("i am ...") the decision falls later, and both are
    forced through the commonest first words of `lacks` replies.
    """
    first: Signal | None = None
    for after in common_openings(session, sets):
        opening = _opening_tokens(session, sets, after)
        odds = [_log_odds(session.logits(sets.val[name], after), opening) for name in ("shows", "lacks")]
        signal = Signal(after, opening, bool(opening.any()) and float(directions.auroc(*odds)) >= SEPARATES)
        if signal.tells:
            return signal
        first = first or signal
    assert first is not None
    return first


def common_openings(session: Session, sets: Sets, longest: int = OPENINGS) -> list[tuple[int, ...]]:
    """The commonest first tokens of the model's replies to `lacks` prompts, for each length from 0."""
    replies = [reply.ids for reply in session.generate(sets.train["lacks"], longest)]
    return [Counter(ids[:length] for ids in replies).most_common(1)[0][0] for length in range(longest)]


class _Evaluation:
    """Tries one direction after another on val prompts: by the token that tells, else by whole replies."""

    def __init__(self, session: Session, behaviour: Behaviour, sets: Sets, detector: Detector, signal: Signal) -> None:
        self.session, self.detector, self.signal = session, detector, signal
        self.induced: dict[Site, float] = {}
        self.shows, self.lacks = (asked(sets.val[name])[:SELECTION_PROMPTS] for name in ("shows", "lacks"))
        self.neutral = behaviour.set("neutral", "val", SELECTION_PROMPTS)
        if not self.neutral:
            say("neutral: none; what a direction changes elsewhere is measured on lacks instead.")
            self.neutral = self.lacks
        self.said = [sets.val[name][:SELECTION_PROMPTS] for name in ("shows", "lacks")] if behaviour.has_replies else []
        self.leaning = self._leaning() if self.said else 0.0
        self.base = session.logits(self.neutral, signal.after).double().log_softmax(-1)
        self.untouched = self._strength(self.shows)
        if not signal.tells and not self.said:
            say("No token at the start of a reply tells the behaviour; directions are compared by whole replies, which takes longer.")

    def candidate(self, direction: Direction, limit: int) -> Candidate:
        with self.session.controlled(ablate(direction)):
            bypass = self._strength(self.shows)
            edited = self.session.logits(self.neutral, self.signal.after).double().log_softmax(-1)
        kl = float(kl_divergence(self.base, edited).mean())
        induce, gap = self._induce(direction), abs(direction.gap)
        made = Candidate(direction.site, direction.estimator, bypass, induce, kl, direction.auroc, direction.separation, gap)
        return replace(made, discarded=why_not(made.row(), limit))

    def _induce(self, direction: Direction) -> float:
        """Strength on `lacks` with the class gap of the direction's site added: the same for every estimator there."""
        if direction.site not in self.induced:
            gap = directions.mean_difference(direction.shows.mean, direction.lacks.mean).float()
            with self.session.controlled(add(replace(direction, basis=gap[None]), 1.0, "read")):
                self.induced[direction.site] = self._strength(self.lacks)
        return self.induced[direction.site]

    def _leaning(self) -> float:
        """How much likelier the given `shows` replies are to the model than the `lacks` replies: nats per reply token."""
        likelihoods = [
            self.session.reply_log_likelihoods(prompts, [self.session.encode_reply(prompt.reply or "") for prompt in prompts])
            for prompts in self.said
        ]
        shows, lacks = (float(torch.cat(rows).double().mean()) for rows in likelihoods)
        return shows - lacks

    def _strength(self, prompts: Sequence[Prompt]) -> float:
        """How strongly the model now tends to the behaviour, as log-odds; for replies as data, by how much more than by itself."""
        if self.said:
            return self._leaning() - self.leaning
        if self.signal.tells:
            return float(_log_odds(self.session.logits(prompts, self.signal.after), self.signal.opening).mean())
        replies = [reply.text for reply in self.session.generate(prompts)]
        shown = sum(present(self.detector, replies, prompts))
        return math.log((shown + 0.5) / (len(prompts) - shown + 0.5))


def _opening_tokens(session: Session, sets: Sets, after: Sequence[int]) -> Tensor:
    """Which tokens [vocab] the model's own replies go on with more often on `shows` than on `lacks`, boolean."""
    shows, lacks = (session.logits(sets.train[name], after).softmax(-1).mean(0) for name in ("shows", "lacks"))
    return (shows > 2 * lacks) & (shows > 1e-3)


def _log_odds(logits: Tensor, opening: Tensor) -> Tensor:
    """log p - log(1 - p) of opening with one of the tokens, logits [prompt, vocab] -> [prompt], without 1 - p."""
    logits = logits.double()
    return logits[:, opening].logsumexp(-1) - logits[:, ~opening].logsumexp(-1)
