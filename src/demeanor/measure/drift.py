"""How far a control moves the model where nothing should change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..algebra.divergence import kl_divergence
from ..errors import CheckFailed, DataError
from ..models import Session
from ..stats import intervals
from ..stats.score import Score
from .condition import Condition
from .observation import Outcome

TOKENS = 32
HELD = 1 << 27  # log-probabilities held at a time: whole vocabularies are large


@dataclass(frozen=True)
class Drift:
    """Over the base's own first 32 reply tokens, teacher-forced, full vocabulary.

    kl: KL(base || controlled), nats per token; first_token_kl: the same of the first token alone, which is what other
    tools report; perplexity: of those replies for the untouched and for the controlled model.
    """

    kl: Score
    first_token_kl: Score
    perplexity: tuple[Score, Score]


def drift(before: Condition, after: Condition, replies: Sequence[Outcome]) -> Drift:
    """What becomes of replies that the condition before gave, for the one after. Intervals are bootstraps over prompts.

    Raises DataError when the two have different vocabularies.
    """
    if before.session.vocabulary != after.session.vocabulary:
        raise DataError(
            f"{before.session.name} and {after.session.name} have different vocabularies, so how far one is from the other cannot be told; compare models of one family."
        )
    outcomes = [outcome for outcome in replies if outcome.reply.ids]
    rows = [row for some in _chunks(before.session, outcomes) for row in _compared(before, after, some)]
    counts, sums, first, plain, edited = torch.tensor(rows, dtype=torch.float64).reshape(-1, 5).T
    return Drift(
        intervals.mean("drift", sums / counts, counts, better="lower"),
        intervals.mean("first_token_kl", first, better="lower"),
        (_perplexity(plain, counts), _perplexity(edited, counts)),
    )


def _chunks(session: Session, outcomes: Sequence[Outcome]) -> list[Sequence[Outcome]]:
    few = max(1, HELD // (TOKENS * session.vocabulary))
    return [outcomes[start : start + few] for start in range(0, len(outcomes), few)]


def _compared(before: Condition, after: Condition, outcomes: Sequence[Outcome]) -> list[tuple[float, ...]]:
    """Per prompt: reply tokens, sum of KL, KL of the first, and the replies' negative log-likelihoods before and after."""
    prompts = [outcome.prompt for outcome in outcomes]
    replies = [outcome.reply.ids[:TOKENS] for outcome in outcomes]
    plain = before.reply_log_probs(prompts, replies)
    edited = after.reply_log_probs(prompts, replies) if after != before else plain
    rows: list[tuple[float, ...]] = []
    for reply, p, q in zip(replies, plain, edited, strict=True):
        p, q = p.double(), q.double()
        if not q.isfinite().all():
            raise CheckFailed(f"With this control {after.session.name} no longer computes numbers; use a smaller dose.")
        kl = kl_divergence(p, q)
        own = torch.tensor(reply)[:, None]
        rows.append((float(len(p)), float(kl.sum()), float(kl[0]), -float(p.gather(1, own).sum()), -float(q.gather(1, own).sum())))
    return rows


def _perplexity(nll: Tensor, counts: Tensor) -> Score:
    """exp of the mean negative log-likelihood per token, from sums [prompt] over counts [prompt] tokens."""
    mean = intervals.mean("perplexity", nll / counts, counts, better="lower")
    value, low, high = torch.tensor([mean.value, mean.low, mean.high], dtype=torch.float64).exp().tolist()
    return replace(mean, value=value, low=low, high=high)
