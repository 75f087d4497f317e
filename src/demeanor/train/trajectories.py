"""What a model does along given replies: the stream after every block, and what it would say next at every reply token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..models.session import Session
from ..runtime.acting import Acting
from ..runtime.batches import Batch
from ..structure.layout import Layout


@dataclass(frozen=True)
class Followed:
    """One prompt and its reply: stream [layer, token, d_model], float32; and for every reply token the likeliest `tokens`
    [reply token, top] with their `log_probs`. On the CPU."""

    stream: Tensor
    tokens: Tensor
    log_probs: Tensor


@torch.no_grad()
def followed(session: Session, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], top: int) -> list[Followed]:
    """What the model does along replies to prompts, all token ids, with whatever control is in force."""
    top = min(top, session.vocabulary)

    def run(batch: Batch) -> list[Followed]:
        lengths = [len(replies[row]) for row in batch.rows]
        # The reply's last token is read too: its states are part of what is to be followed.
        with session.runner.replying(torch.tensor(lengths)), recorded(session.model, session.layout) as stream:
            logits = session.model(**batch.inputs(), logits_to_keep=max(lengths) + 1).logits
        followed_replies = []
        for place, (row, length) in enumerate(zip(batch.rows, lengths)):
            log_probs = logits[place, logits.shape[1] - length - 1 : -1].float().log_softmax(-1)
            best = log_probs.topk(top)
            tokens = len(prompts[row]) + length
            layers = torch.stack([stream[layer][place, -tokens:] for layer in range(session.layout.n_layers)])
            followed_replies.append(Followed(layers.float().cpu(), best.indices.cpu(), best.values.cpu()))
        return followed_replies

    return session.runner.in_batches([[*prompt, *reply] for prompt, reply in zip(prompts, replies, strict=True)], run, "Following")


@contextmanager
def recorded(model: nn.Module, layout: Layout) -> Iterator[dict[int, Tensor]]:
    """Every block's output in the caller's passes inside, by layer: [row, token, d_model], with its graph where there is one."""
    recorder = _Recorder(model, layout)
    with recorder.attached():
        yield recorder.seen


class _Recorder(Acting):
    def __init__(self, model: nn.Module, layout: Layout) -> None:
        super().__init__(model)
        self.layout = layout
        self.seen: dict[int, Tensor] = {}

    def lay(self) -> None:
        for layer, block in enumerate(self.layout.blocks):
            self.on_output(self.model.get_submodule(block), partial(self._keep, layer))

    def _keep(self, layer: int, value: Tensor) -> None:
        self.seen[layer] = value
