"""How far a control moves the model where nothing should change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..algebra.divergence import kl_divergence
from ..errors import CheckFailed, DataError
from ..models import Session
from ..stats import intervals
from ..stats.score import Score
from .condition import Condition
from .ledger import KEPT, Ledger
from .observation import Outcome

TOKENS = 32  # of a reply


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Over the base's own first 32 reply tokens, teacher-forced, full vocabulary; a row per reply, float64.

    tokens: how many; kl_sum: KL(base || controlled) over them, nats; first_kl: of the first token alone; base_nll and nll: the
    reply's negative log-likelihood for the base and for the controlled model. Intervals are bootstraps over replies.
    """

    tokens: Tensor
    kl_sum: Tensor
    first_kl: Tensor
    base_nll: Tensor
    nll: Tensor

    @cached_property
    def kl(self) -> Score:
        """Nats per token."""
        return intervals.mean("drift", self.kl_sum / self.tokens, self.tokens, better="lower")

    @property
    def first_nats(self) -> float:
        """The value of `first_token_kl` without its interval; 0 where there are no replies to tell it by."""
        return float(self.first_kl.mean()) if len(self.first_kl) else 0.0

    @property
    def first_token_kl(self) -> Score:
        """What other tools report."""
        return intervals.mean("first_token_kl", self.first_kl, better="lower")

    @property
    def perplexity(self) -> tuple[Score, Score]:
        """Of the base's replies, for the base and for the controlled model."""
        return _perplexity(self.base_nll, self.tokens), _perplexity(self.nll, self.tokens)

    def where(self, fires: Sequence[bool]) -> Drift:
        """This drift where a gate fires [reply] and none elsewhere."""
        fired = torch.tensor(fires)
        return replace(
            self, kl_sum=self.kl_sum * fired, first_kl=self.first_kl * fired, nll=torch.where(fired, self.nll, self.base_nll)
        )  # fmt: skip


def heard(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes by which drift is told: those with a reply."""
    return [outcome for outcome in outcomes if outcome.reply.ids]


def drift(base: Ledger, after: Condition, replies: Sequence[Outcome]) -> Drift:
    """What becomes of the untouched model's own replies under a condition.

    Raises DataError when the two models have different vocabularies, CheckFailed when what is computed is no number.
    """
    before = base.session
    if before.vocabulary != after.session.vocabulary:
        raise DataError(
            f"{before.name} and {after.session.name} have different vocabularies, so how far one is from the other cannot be told; compare models of one family."
        )
    rows = [row for some in _chunks(before, heard(replies)) for row in _kept(base, after, some)]
    tokens, kl_sum, first_kl, base_nll, nll = torch.tensor(rows, dtype=torch.float64).reshape(-1, 5).T
    return Drift(tokens=tokens, kl_sum=kl_sum, first_kl=first_kl, base_nll=base_nll, nll=nll)


def _chunks(session: Session, outcomes: Sequence[Outcome]) -> list[Sequence[Outcome]]:
    few = max(1, KEPT // (TOKENS * session.vocabulary))
    return [outcomes[start : start + few] for start in range(0, len(outcomes), few)]


def _kept(base: Ledger, after: Condition, outcomes: Sequence[Outcome]) -> list[tuple[float, ...]]:
    """`_compared`, from the base's journal where it was computed before."""
    if not base.journal.keeps or after.digest is None:
        return _compared(base, after, outcomes)
    rows = [(base.session.encode(outcome.prompt), outcome.reply.ids[:TOKENS]) for outcome in outcomes]
    kept: list[tuple[float, ...]] = base.journal.recall(("drift", after.digest, rows), lambda: _compared(base, after, outcomes))
    return kept


def _compared(base: Ledger, after: Condition, outcomes: Sequence[Outcome]) -> list[tuple[float, ...]]:
    """Per prompt: reply tokens, sum of KL, KL of the first, and the replies' negative log-likelihoods before and after."""
    prompts = [outcome.prompt for outcome in outcomes]
    replies = [outcome.reply.ids[:TOKENS] for outcome in outcomes]
    plain = base.reply_log_probs(prompts, replies)
    edited = plain if after == Condition(base.session) else after.reply_log_probs(prompts, replies)
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
