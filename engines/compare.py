"""How far an engine's answers are from those of the control at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

TOP = 50
Answers = dict[str, np.ndarray[Any, Any]]  # log_probs [prompt, vocab], tokens [prompt, new token]


@dataclass(frozen=True)
class Distance:
    """worst: the largest difference of a log-probability, over all prompts and the whole vocabulary. middle: the median over prompts of each one's largest.
    kl: nats from the control to the engine, mean over prompts. ranks: Spearman's correlation of the control's TOP most likely tokens, the lowest of all prompts.
    first: prompts with the same most likely token. texts: prompts whose whole greedy reply is the same, token for token. differs: the median place of the first
    token that is another, over the other prompts; None where there are none.
    """

    n: int
    worst: float
    middle: float
    kl: float
    ranks: float
    first: int
    texts: int
    differs: float | None


def distance(got: Answers, wanted: Answers) -> Distance:
    one, other = got["log_probs"].astype(np.float64), wanted["log_probs"].astype(np.float64)
    largest = np.abs(one - other).max(1)
    top = np.argsort(-other, axis=1)[:, :TOP]
    ranks = [_spearman(row[chosen], of[chosen]) for row, of, chosen in zip(one, other, top)]
    differing = [int(np.argmax(row != of)) for row, of in zip(got["tokens"], wanted["tokens"]) if (row != of).any()]
    return Distance(
        n=len(one), worst=float(largest.max()), middle=float(np.median(largest)), kl=float((np.exp(other) * (other - one)).sum(1).mean()), ranks=min(ranks),
        first=int((one.argmax(1) == other.argmax(1)).sum()), texts=len(one) - len(differing), differs=float(np.median(differing)) if differing else None,
    )  # fmt: skip


def _spearman(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    return float(np.corrcoef(one.argsort().argsort(), other.argsort().argsort())[0, 1])
