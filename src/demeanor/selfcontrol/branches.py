"""Several greedy replies per prompt from one reading of it, each with a first token of its own.

A prompt is read once, with something added to the stream at its positions; its cache is then copied for the likeliest
first tokens. Replies that have ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.session import Session
from ..runtime.batches import Batch, trimmed
from ..runtime.caches import cache_of, keyword
from ..runtime.prompt_states import adding

# (rows of the caller, layer) -> what is added at the prompts' positions, [row, width, d_model]; see `states`.
RowValues = Callable[[Sequence[int], int], Tensor]
FEWER = 0.75  # the batch is made smaller once this share of its replies is left


@torch.no_grad()
def branched(
    session: Session, prompts: Sequence[Sequence[int]], values: RowValues | None = None, branches: int = 1, most: int | None = None
) -> list[list[tuple[int, ...]]]:
    """Greedy replies per row of token ids: the plain one, then those that open with the next likeliest tokens.

    Replies are token ids with their end token, of at most `most` tokens, as `Session.generate` gives them. A token that
    ends a reply opens no further one. The model is otherwise uncontrolled.
    """
    most = most or session.reply_tokens

    def run(batch: Batch) -> list[list[tuple[int, ...]]]:
        out = _prefill(session, batch, values)
        first = _openings(session, out.logits[:, -1].float(), branches)  # [row, branch]
        rows = torch.arange(len(batch.rows), device=first.device).repeat_interleave(branches)
        cache = cache_of(out)
        cache.reorder_cache(rows)
        room = session.runner.room(batch, most)
        said = _decoded(session, cache, batch.attention_mask[rows], first.flatten(), room)
        return [said[start : start + branches] for start in range(0, len(said), branches)]

    # What a row costs is its branches' tokens; the prompt itself is counted by the batch.
    extra = max(0, branches * most + (branches - 1) * max(map(len, prompts), default=0))
    with session.uncontrolled():
        return session.runner.in_batches(prompts, run, "Branching", extra, session.runner.branch_budget, most)


def _prefill(session: Session, batch: Batch, values: RowValues | None) -> Any:
    inputs = {**batch.inputs(), "use_cache": True, "logits_to_keep": 1}
    if values is None:
        return session.model(**inputs)
    ends = torch.full((len(batch.rows),), batch.input_ids.shape[1] - 1, device=session.device)
    with adding(session.model, session.layout, lambda layer: values(batch.rows, layer), ends):
        return session.model(**inputs)


def _openings(session: Session, logits: Tensor, branches: int) -> Tensor:
    """The likeliest token of each row, then the next likeliest that do not end the reply: [row, branch]."""
    best = logits.argmax(-1, keepdim=True)
    if branches == 1:
        return best
    others = logits.scatter(1, best, float("-inf"))
    others[:, sorted(session.end_ids)] = float("-inf")
    return torch.cat([best, others.topk(branches - 1).indices], 1)


def _decoded(session: Session, cache: Any, mask: Tensor, first: Tensor, most: int) -> list[tuple[int, ...]]:
    """Greedy replies from a cache of prompts, whose first tokens are given."""
    ends = torch.tensor(sorted(session.end_ids), device=first.device)
    said = first.new_zeros(len(first), most)  # what stands after an end token is cut off
    said[:, 0] = token = first
    alive = torch.arange(len(first), device=first.device)
    over = torch.isin(token, ends)
    for place in range(1, most):
        left = int((~over).sum())
        if left == 0:
            break
        if left <= FEWER * len(alive):
            kept = (~over).nonzero()[:, 0]
            cache.reorder_cache(kept)
            alive, mask, token, over = alive[kept], mask[kept], token[kept], over[kept]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        out = session.model(
            input_ids=token[:, None], attention_mask=mask, position_ids=mask.sum(1, keepdim=True) - 1,
            use_cache=True, logits_to_keep=1, **{keyword(): cache},
        )  # fmt: skip
        token = out.logits[:, -1].float().argmax(-1)
        said[alive, place] = token
        over = over | torch.isin(token, ends)
    return [trimmed(row, session.end_ids) for row in said.tolist()]
