"""What a model's inputs have to do with a reply, and what texts look like to it. algorithms.md, section 7."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..behaviours import Prompt
from ..errors import DataError
from ..runtime.acting import Acting
from ..runtime.batches import Batch, each
from ..structure.layout import contributions
from .session import Session


def input_x_gradient(session: Session, prompts: Sequence[str | Prompt], replies: Sequence[Sequence[int]]) -> list[Tensor]:
    """|x . d log p(reply) / dx| of every token's embedding x: [prompt token + reply token] per prompt, float32, CPU.

    One backward pass for the whole reply; its last token predicts nothing and gets 0. A control in force acts first.
    """
    starts = [session.encode(prompt) for prompt in prompts]
    rows = [[*start, *reply] for start, reply in zip(starts, replies, strict=True)]

    def run(batch: Batch) -> list[Tensor]:
        lengths = [len(replies[row]) for row in batch.rows]
        with torch.enable_grad(), _Embedded(session).attached() as embedded:
            out = session.model(**batch.inputs(), logits_to_keep=max(lengths) + 1)
            log_probs = out.logits.float().log_softmax(-1)
            own = [
                log_probs[row, -1 - length : -1].gather(1, batch.input_ids[row, -length:, None]).sum() for row, length in enumerate(lengths)
            ]
            (gradient,) = torch.autograd.grad(torch.stack(own).sum(), embedded.seen[-1])
        shares = (embedded.seen[-1].detach().float() * gradient.float()).sum(-1).abs().cpu()
        return [shares[place, -len(rows[row]) :] for place, row in enumerate(batch.rows)]

    return session.runner.in_batches(rows, run, "Attributing")


def ablation_gain(session: Session, prompts: Sequence[str | Prompt], replies: Sequence[Sequence[int]]) -> Tensor:
    """What ablating a direction at every writer does to the likelihood of replies, to first order: A [d_model, d_model], symmetric.

    Ablating unit v gains v^T A v in the mean log-probability per reply token (nats); float64, CPU. Over all writers' contributions w at
    all tokens, and their gradients g, A is the symmetric part of -sum g w^T. A control in force acts first.
    """
    starts = [session.encode(prompt) for prompt in prompts]
    rows = [[*start, *reply[:-1]] for start, reply in zip(starts, replies, strict=True)]
    total = torch.zeros(session.layout.d_model, session.layout.d_model, dtype=torch.float64)

    def run(batch: Batch) -> list[None]:
        with torch.enable_grad(), _Contributions(session).attached() as added:
            logits = session.model(**batch.inputs(), logits_to_keep=max(len(replies[row]) for row in batch.rows)).logits.float()
            means = []
            for place, row in enumerate(batch.rows):
                reply = torch.tensor(replies[row], device=logits.device)
                means.append(logits[place, -len(reply) :].log_softmax(-1).gather(1, reply[:, None]).mean())
            gradients = torch.autograd.grad(torch.stack(means).sum(), added.seen)
        for values, gradient in zip(added.seen, gradients):
            total.sub_((gradient.float().flatten(0, 1).T @ values.detach().float().flatten(0, 1)).double().cpu())
        return [None] * len(batch.rows)

    session.runner.in_batches(rows, run, "Reading what ablation gains")
    return (total + total.T) / (2 * len(rows))


class _Contributions(Acting):
    """What every writer adds to the stream in the next forward pass (but for a factor), in the graph."""

    def __init__(self, session: Session) -> None:
        super().__init__(session.model)
        self.layout = session.layout
        self.seen: list[Tensor] = []

    def lay(self) -> None:
        for writer in contributions(self.layout.writers):
            self.on_output(self.model.get_submodule(writer.contribution), self._keep)

    def _keep(self, value: Tensor) -> Tensor:
        self.seen.append(value if value.requires_grad else value.detach().requires_grad_())
        return self.seen[-1].clone()  # some families add to the stream in place after the hook


class _Embedded(Acting):
    """The embeddings of the next forward pass, as leaves of its graph."""

    def __init__(self, session: Session) -> None:
        super().__init__(session.model)
        self.seen: list[Tensor] = []

    def lay(self) -> None:
        self.on_output(self.model.get_input_embeddings(), self._leaf)  # type: ignore[operator]

    def _leaf(self, value: Tensor) -> Tensor:
        self.seen.append(value.detach().requires_grad_())
        return self.seen[-1]


@torch.no_grad()
def mean_states(session: Session, texts: Sequence[str]) -> Tensor:
    """The mean over a text's tokens of the model's last states: [text, d_model], float32, CPU."""
    rows = [session.encode_reply(text) or [session.pad_id] for text in texts]
    if not rows:
        raise DataError("There are no texts to embed.")

    def run(batch: Batch) -> list[Tensor]:
        states = session.decoder(**batch.inputs()).last_hidden_state.float()
        own = torch.tensor([len(rows[row]) for row in batch.rows], device=states.device)
        length = states.shape[1]  # of the longest, and of what a control puts before it
        mask = (torch.arange(length, device=states.device) >= length - own[:, None])[..., None]
        return list(each((states * mask).sum(1) / mask.sum(1)))

    return torch.stack(session.runner.in_batches(rows, run, "Embedding"))
