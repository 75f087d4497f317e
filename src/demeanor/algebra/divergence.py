"""How far one next-token distribution is from another."""

from __future__ import annotations

from torch import Tensor


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats over the last axis, of log-probabilities [..., vocab] -> [...]."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)
