"""Estimators side by side, by what their directions do to held-out prompts: a wide gap does not say that ablating along it works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..behaviours import Behaviour
from ..controls import Direction, ablate
from ..controls.direction import Candidate, Estimator
from ..errors import NoCandidate
from ..measure.bench import Bench
from ..progress import say, track
from ..stats.score import Score
from .estimators import ESTIMATORS, USUAL
from .find import Findings

PROMPTS = 64  # of each set of val, enough to tell estimators apart


@dataclass(frozen=True)
class ComparedEstimator:
    """The best direction of one estimator, what selection saw of it, and every rate on val with it ablated."""

    direction: Direction
    candidate: Candidate
    scores: Mapping[str, Score]

    def to_json(self) -> dict[str, Any]:
        c = self.candidate
        seen = {"bypass": c.bypass, "kl": c.kl, "auroc": c.auroc, "separation": c.separation, "discarded": list(c.discarded)}
        return {
            "estimator": c.estimator, "site": str(c.site), **seen, **{name: score.to_json() for name, score in self.scores.items() if score.n},
        }  # fmt: skip


def estimators_for(behaviour: Behaviour, named: Sequence[str] | None, all_of_them: bool) -> tuple[Estimator, ...]:
    """The estimators that were asked for; all of them are those that the behaviour's rows allow."""
    if named:
        return tuple(named)  # type: ignore[arg-type]
    if not all_of_them:
        return USUAL
    if not behaviour.pairs:
        say(f"paired_pca is left out: the rows of {behaviour.name!r} are no pairs.")
    return tuple(name for name in ESTIMATORS if name != "paired_pca" or behaviour.pairs)


def compare_estimators(bench: Bench, found: Findings) -> list[ComparedEstimator]:
    """The best surviving candidate of every estimator of a search, with what ablating it does on a bench; the best first.

    An estimator whose candidates were all discarded is told aloud. Raises NoCandidate when that is true of every one.
    """
    best: dict[Estimator, int] = {}
    for number in found.eligible():
        best.setdefault(found.candidates[number].estimator, number)
    for name in dict.fromkeys(candidate.estimator for candidate in found.candidates):
        if name not in best:
            say(f"{name}: every candidate was discarded.")
    if not best:
        raise NoCandidate("Every candidate of every estimator was discarded; see find without --compare for the reasons.")
    compared = []
    for number in track(list(best.values()), "Comparing estimators", len(best)):
        trial = bench.try_(ablate(found.directions[number]))
        compared.append((trial.merit, ComparedEstimator(found.directions[number], found.candidates[number], trial.scores)))
    return [estimator for _, estimator in sorted(compared, key=lambda pair: -pair[0])]
