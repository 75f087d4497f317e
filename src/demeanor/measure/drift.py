"""How far a control moves the model where nothing should change."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..algebra import intervals
from ..algebra.divergence import kl_divergence
from ..controls import Control
from ..errors import CheckFailed
from ..models import Session
from ..score import Score
from .observation import Outcome

TOKENS = 32
HELD = 1 << 27  # log-probabilities held at a time: whole vocabularies are large


def drift(session: Session, control: Control | None, base: Sequence[Outcome]) -> Score:
    """KL(base || controlled) in nats per token, over the base's own first 32 reply tokens, teacher-forced.

    Full vocabulary, float32; the interval is a bootstrap over prompts. Zero without a control.
    """
    outcomes = [outcome for outcome in base if outcome.reply.ids]
    if control is None or not outcomes:
        zeros = torch.zeros(len(outcomes))
        return intervals.mean("drift", zeros, better="lower")
    prompts = [outcome.prompt for outcome in outcomes]
    replies = [outcome.reply.ids[:TOKENS] for outcome in outcomes]
    sums, counts = [], []
    few = max(1, HELD // (TOKENS * session.vocabulary))
    for start in range(0, len(prompts), few):
        some, theirs = prompts[start : start + few], replies[start : start + few]
        plain = session.reply_log_probs(some, theirs)
        with session.controlled(control):
            edited = session.reply_log_probs(some, theirs)
        for p, q in zip(plain, edited, strict=True):
            p, q = p.double(), q.double()
            if not q.isfinite().all():
                raise CheckFailed(f"With this control {session.name} no longer computes numbers; use a smaller dose.")
            sums.append(float(kl_divergence(p, q).sum()))
            counts.append(len(p))
    tokens = torch.tensor(counts, dtype=torch.float64)
    return intervals.mean("drift", torch.tensor(sums, dtype=torch.float64) / tokens, tokens, better="lower")
