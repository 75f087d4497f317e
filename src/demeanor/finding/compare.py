"""Estimators side by side, by what their directions do to held-out prompts: a wide gap does not say that ablating along it works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..behaviours import Behaviour
from ..controls import Direction, ablate
from ..controls.direction import Candidate
from ..errors import NoCandidate
from ..measure.bench import Bench
from ..progress import say, track, warn
from ..stats.score import Score
from .estimators import ESTIMATORS, named_estimators, usual_estimators, why_unfit
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


def estimators_for(behaviour: Behaviour, named: Sequence[str] | None, all_of_them: bool) -> tuple[str, ...]:
    """The names of the estimators that were asked for, known to exist; all of them are those that the behaviour has the prompts for."""
    if named:
        return tuple(record.name for record in named_estimators(behaviour, named))
    if not all_of_them:
        return usual_estimators(behaviour)
    reasons = {record.name: why_unfit(record, behaviour) for record in ESTIMATORS.every()}
    for reason in filter(None, reasons.values()):
        warn(f"Left out: {reason}")
    return tuple(name for name, reason in reasons.items() if reason is None)


def compare_estimators(bench: Bench, findings: Findings) -> list[ComparedEstimator]:
    """The best surviving candidate of every estimator of a search, with what ablating it does on a bench; the best first.

    An estimator whose candidates were all discarded is told aloud. Raises NoCandidate when that is true of every one.
    """
    best: dict[str, int] = {}
    for number in findings.eligible():
        best.setdefault(findings.candidates[number].estimator, number)
    for name in dict.fromkeys(candidate.estimator for candidate in findings.candidates):
        if name not in best:
            say(f"{name}: every candidate was discarded.")
    if not best:
        raise NoCandidate("Every candidate of every estimator was discarded; see find without --compare for the reasons.")
    compared = []
    for number in track(list(best.values()), "Comparing estimators", len(best)):
        trial = bench.try_(ablate(findings.directions[number]))
        compared.append((trial.merit, ComparedEstimator(findings.directions[number], findings.candidates[number], trial.scores)))
    return [estimator for _, estimator in sorted(compared, key=lambda pair: -pair[0])]
