"""Trying candidate directions on val prompts: every one on all of them, or many on a few and few on many.

A small model has every candidate tried on as many prompts. Elsewhere that is most of the work of a search, so it is halved: the
directions whose classes lie furthest apart, of every depth, are tried on a few prompts; the better part of them on twice as many; and
so on (algorithms.md, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..algebra import directions
from ..behaviours import asked
from ..controls import ablate, add
from ..controls.direction import Candidate, Direction
from ..measure.bench import Bench
from ..models import Site
from ..progress import say, track, warn
from .filter import Sets
from .gauges import Gauge, Strength, Tried, gauge_for
from .plan import Trying
from .select import KL_MAX, RankBy, Rules, rank_key, why_not
from .signal import Signal

SELECTION_PROMPTS = 64  # of each set, in every evaluation of a candidate
FEW = 32  # directions that are halved, at most
DEPTHS = 4  # parts of the model, each of which has its best directions tried
ROUNDS = (8, 16, 32)  # prompts of each set
GOES_ON = 3  # one direction in so many is tried on more prompts


class Evaluation:
    """Tries directions by one gauge after another, each with more prompts."""

    def __init__(self, bench: Bench, sets: Sets, signal: Signal, limit: int, rank_by: RankBy) -> None:
        self.bench, self.signal = bench, signal
        self.limit, self.rank_by = limit, rank_by
        shows, lacks = (asked(sets.val[name])[:SELECTION_PROMPTS] for name in ("shows", "lacks"))
        neutral = bench.behaviour.set("neutral", "val", SELECTION_PROMPTS)
        if not neutral:
            warn("neutral: none; what a direction changes elsewhere is measured on lacks instead.")
            neutral = lacks
        given = (sets.val["shows"][:SELECTION_PROMPTS], sets.val["lacks"][:SELECTION_PROMPTS]) if sets.replied else None
        self.tried = Tried(shows, lacks, neutral, given)
        self.untouched = 0.0

    def candidates(self, found: Sequence[Direction], trying: Trying) -> tuple[list[Direction], list[Candidate]]:
        """The directions that were tried, and what each did."""
        if trying == "every":
            one = _Round(self, self.tried)
            self.untouched = one.untouched.odds
            return list(found), one.candidates(found, induce=True)
        return self._halved(found)

    def _halved(self, found: Sequence[Direction]) -> tuple[list[Direction], list[Candidate]]:
        few = promising(found, FEW, self.limit)
        if len(few) < len(found):
            say(f"{len(few)} of {len(found)} directions are tried: those whose classes lie furthest apart, of every depth.")
        candidates: dict[int, Candidate] = {}
        left = few
        for number, count in enumerate(ROUNDS):
            last = number == len(ROUNDS) - 1
            one = _Round(self, self.tried.first(count))
            seen = one.candidates([found[index] for index in left], induce=last or self.rank_by == "induce")
            candidates |= dict(zip(left, seen, strict=True))
            self.untouched = one.untouched.odds
            usable = [index for index in left if not candidates[index].discarded] or left
            left = sorted(usable, key=lambda index: rank_key(candidates[index].row(), self.rank_by))
            left = left[: max(DEPTHS, -(-len(few) // GOES_ON ** (number + 1)))]
        return [found[index] for index in few], [candidates[index] for index in few]


class _Round:
    """Directions tried on the same prompts by the same gauge."""

    def __init__(self, evaluation: Evaluation, tried: Tried) -> None:
        self.tried = tried
        self.gauge: Gauge = gauge_for(evaluation.bench, evaluation.signal, tried)
        # What moves neutral prompts by less than the model's own choice among tokens varies is no reason to discard.
        self.rules = Rules(evaluation.limit, max(KL_MAX, self.gauge.variation), induces=evaluation.rank_by == "induce")
        self.untouched = self.gauge.strength("shows", None)
        self.induced: dict[Site, float] = {}

    def candidates(self, found: Sequence[Direction], *, induce: bool) -> list[Candidate]:
        bypass = self.gauge.strengths("shows", [ablate(direction) for direction in found])
        pairs = list(zip(found, bypass, strict=True))
        return [self._candidate(*pair, induce) for pair in track(pairs, "Measuring what directions cost", len(pairs))]

    def _candidate(self, direction: Direction, bypass: Strength, induce: bool) -> Candidate:
        candidate = Candidate(
            site=direction.site,
            estimator=direction.estimator,
            bypass=bypass.odds,
            induce=self._induce(direction) if induce else float("nan"),
            kl=self.gauge.change(ablate(direction)),
            auroc=direction.auroc,
            separation=direction.separation,
            gap=abs(direction.gap),
            left=bypass.share,
            n=len(self.tried.shows if self.tried.given is None else self.tried.given[0]),
        )
        return replace(candidate, discarded=why_not(candidate.row(), self.rules))

    def _induce(self, direction: Direction) -> float:
        """Strength on `lacks` with the class gap of the direction's site added: the same for every estimator there."""
        if direction.site not in self.induced:
            gap = directions.mean_difference(direction.shows.mean, direction.lacks.mean).float()
            self.induced[direction.site] = self.gauge.strength("lacks", add(replace(direction, basis=gap[None]), 1.0, "read")).odds
        return self.induced[direction.site]


def promising(found: Sequence[Direction], count: int, limit: int) -> list[int]:
    """The numbers of at most `count` directions: of every quarter of the layers that are not too late, those whose classes lie furthest apart."""
    early = [number for number, item in enumerate(found) if item.site.layer < limit] or list(range(len(found)))
    if len(early) <= count:
        return early
    parts: list[list[int]] = [[] for _ in range(DEPTHS)]
    for number in sorted(early, key=lambda number: -found[number].separation):
        parts[min(DEPTHS - 1, found[number].site.layer * DEPTHS // limit)].append(number)
    chosen = [number for place in range(count) for part in parts for number in part[place : place + 1]]
    return sorted(chosen[:count])
