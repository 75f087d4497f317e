"""Losses of a student that follows a teacher: the stream after every block, and the next tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..runtime.batches import Batch, left_pad
from .trajectories import recorded


class Collate:
    """Rows of targets as one left-padded batch."""

    def __init__(self, pad: int, virtual_tokens: int) -> None:
        self.pad, self.virtual_tokens = pad, virtual_tokens

    def __call__(self, rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
        ids = [[self.pad] * self.virtual_tokens + row["ids"].tolist() for row in rows]
        inputs, mask = left_pad(ids, self.pad, torch.device("cpu"))
        return {**Batch(tuple(range(len(rows))), inputs, mask).inputs(), "targets": [dict(row) for row in rows]}


def followed_loss(base: Any, model: Any, layout: Any, inputs: Mapping[str, Any], states: float, said: float) -> Tensor:
    """How far a batch is from its targets: KL of next tokens over replies, plus `said` times the negative log-likelihood of
    steered replies (which may be hardly likelier than what they replace), plus `states` times the squared distance of the streams as a share of their squared norm, over layers and tokens.

    `base` is what `model` wraps, by whose names the layout goes.
    """
    targets = inputs["targets"]
    passed = {name: value for name, value in inputs.items() if name != "targets"}
    with recorded(base, layout) as stream:
        logits = model(**passed).logits
    losses = []
    for place, target in enumerate(targets):
        tokens, length = len(target["ids"]), len(target["tokens"])
        here = torch.stack([stream[layer][place, -tokens:] for layer in range(layout.n_layers)]).float()
        there = target["stream"].to(here.device).float()
        apart = (here - there).square().sum(-1) / there.square().sum(-1).clamp_min(1e-12)
        log_probs = logits[place, logits.shape[1] - length - 1 : -1].float().log_softmax(-1)
        divergence = divergence_of_likeliest(target["tokens"].to(here.device).long(), target["log_probs"].to(here.device), log_probs)
        loss = states * apart.mean()
        if length:
            loss = loss + divergence.mean()
        if length and bool(target["steered"]):
            loss = loss - said * log_probs.gather(1, target["ids"][tokens - length :, None].to(here.device).long()).mean()
        losses.append(loss)
    return torch.stack(losses).mean()


def divergence_of_likeliest(tokens: Tensor, target: Tensor, log_probs: Tensor) -> Tensor:
    """KL(wanted || model) [token] over the likeliest tokens and all others as one; never above the KL over all tokens.

    tokens, wanted (log-probabilities) [token, top]; log_probs [token, vocab].
    """
    own = log_probs.gather(1, tokens)
    if tokens.shape[1] < log_probs.shape[1]:
        target, own = (torch.cat([log_probabilities, _rest(log_probabilities)], 1) for log_probabilities in (target, own))
    return (target.exp() * (target - own)).sum(1)


def _rest(log_probs: Tensor) -> Tensor:
    """The log-probability of everything else: [token, 1]; no less than rounding can tell from nothing."""
    return torch.log1p(-log_probs.exp().sum(1, keepdim=True).clamp_max(1 - 1e-6))
