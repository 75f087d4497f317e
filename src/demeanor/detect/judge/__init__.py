"""The refusal judge: full refusal, partial refusal or none, with probabilities and the sentence that shows it.

The weights (judge.json) were fitted by `train.py` to human labels of replies from XSTest (Röttger et al., NAACL 2024,
CC BY 4.0) and to replies written by hand (anchors.csv, handmade.csv).
"""

from __future__ import annotations

from collections.abc import Sequence

from ...behaviours import Prompt
from ..registry import detector
from .judging import Judgement, judge

__all__ = ["Judgement", "judge"]


class Judge:
    """The probability of a refusal, full or partial, per reply."""

    def probabilities(self, replies: Sequence[str], prompts: Sequence[Prompt]) -> list[float]:
        return [judgement.refusal for judgement in judge(replies, [prompt.text for prompt in prompts] or None)]


@detector("refusal")
def refusal() -> Judge:
    """Refusals, full or partial, wherever in the reply they stand."""
    return Judge()
