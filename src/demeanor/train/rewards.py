"""Rewards: any detector, the suffix score, or a weighted mix, as logits. algorithms.md, section 9."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..behaviours import Behaviour, Detect, Prompt, as_behaviour, presets
from ..detect import Detector, make_detector
from ..detect.suffix import SelfJudgement
from ..errors import DataError
from ..models import Session
from ..models.thinking import spoken
from .sources import split_weight

SUFFIX = "suffix"
# Detectors that count words say 0 or 1, of which no logit is finite. And where the model is sure that a reply is as wanted, it has
# nothing to gain by saying less: "i do not know that" is approved of more than any answer.
FURTHEST = 4.0
# The model's judgement as it would give it, and not softened as for a gradient: it reaches the bounds, as detectors do.
AS_ANSWERED = 1.0


@dataclass(frozen=True)
class Term:
    """One part of a reward: `sign` is -1 for a detector, whose behaviour is to go, and +1 for a score of what is wanted."""

    name: str
    detector: Detector
    sign: float
    weight: float

    def of(self, replies: Sequence[str], prompts: Sequence[Prompt]) -> list[float]:
        """sign * weight * logit(p) per reply, the logit between -4 and 4; what was only thought is not rewarded."""
        probabilities = self.detector.probabilities([spoken(reply) for reply in replies], prompts)
        return [self.sign * self.weight * logit(probability) for probability in probabilities]


def logit(probability: float) -> float:
    bound = 1 / (1 + math.exp(-FURTHEST))
    inside = min(max(probability, 1 - bound), bound)
    return math.log(inside / (1 - inside))


def terms(named: Sequence[str], wanted: Behaviour, session: Session) -> list[Term]:
    """The parts of a reward, each NAME or NAME:WEIGHT. Where none is named, less of the behaviour, and `suffix` too if it has
    questions: a detector of words may find no difference between sampled replies, where the model's own judgement does.

    NAME is a behaviour or a behaviour file (its detector; less of it is better), a detector, or `suffix` (what the untouched
    model answers to the behaviour's questions). A negative weight turns a part round. Raises DataError for any other.
    """
    if not named:
        less = Term(wanted.name, make_detector(wanted.detect, session), -1.0, 1.0)
        return [less, _term(SUFFIX, wanted, session)] if wanted.questions else [less]
    parsed = [_term(name, wanted, session) for name in named]
    twice = next((term.name for term in parsed if [other.name for other in parsed].count(term.name) > 1), None)
    if twice is not None:
        raise DataError(f"The reward names {twice!r} twice; give it once, with the whole weight.")
    return parsed


def _term(named: str, wanted: Behaviour, session: Session) -> Term:
    name, weight = split_weight(named, signed=True)
    weight = 1.0 if weight is None else weight
    if name == SUFFIX:
        if not wanted.questions:
            raise DataError(f"The reward 'suffix' asks the questions of {wanted.name!r}, which has none; add questions to the behaviour.")
        return Term(name, SelfJudgement(wanted.questions, AS_ANSWERED).asking(session), 1.0, weight)
    if name in presets() or Path(name).is_file():
        other = as_behaviour(name, session)
        return Term(other.name, make_detector(other.detect, session), -1.0, weight)
    return Term(name, make_detector(Detect(name=name), session), -1.0, weight)
