"""Gradients of what a model says next, with respect to what is added to the stream at the positions of prompts.

One leaf [layer, row, width, d_model] holds what is added to every block's output, so one backward pass gives the
gradient at every layer and token. algorithms.md, section 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.session import Session
from ..runtime.batches import Batch
from ..runtime.prompt_states import adding, right_aligned

# (next-token logits [row, vocab], which of the caller's rows they are) -> [row]
Objective = Callable[[Tensor, Sequence[int]], Tensor]
TRIES = 6  # at an opening, each from where the last one ended
MARGIN = 0.05  # of a logit by which a wanted first token leads, so that rounding in another batch does not change it


@dataclass(frozen=True)
class Gradients:
    """Of one number per row: `values` [row], its gradient [layer, row, width, d_model], and the stream [row, layer, d_model]
    at each prompt's last token. Nothing was added beside what the caller gave, and pads have no gradient."""

    values: Tensor
    gradient: Tensor
    stream: Tensor


def prompt_gradients(
    session: Session, rows: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]], given: Tensor, objective: Objective
) -> Gradients:
    """Gradients of `objective` after rows of token ids that begin with `prompts`, with `given` [layer, row, width, d_model]
    added at the prompts' positions: at that point, and with respect to it."""
    width = given.shape[2]

    def run(batch: Batch) -> list[tuple[Tensor, Tensor, Tensor]]:
        leaf = given[:, list(batch.rows)].to(session.device).detach().requires_grad_()
        layers = leaf.unbind(0)  # not leaf[layer]: the backward pass of each would fill a whole leaf with zeros
        following = torch.tensor([len(rows[row]) - len(prompts[row]) for row in batch.rows], device=session.device)
        ends = batch.input_ids.shape[1] - 1 - following
        here = torch.arange(len(batch.rows), device=session.device)
        stream: dict[int, Tensor] = {}

        def watch(layer: int, x: Tensor) -> None:
            stream[layer] = x.detach()[here, ends].float()

        with torch.enable_grad(), adding(session.model, session.layout, layers.__getitem__, ends, watch):
            logits = session.model(**batch.inputs(), logits_to_keep=1).logits[:, -1].float()
            values = objective(logits, batch.rows)
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        lengths = torch.tensor([len(prompts[row]) for row in batch.rows], device=session.device)
        real = torch.arange(width, device=session.device) >= width - lengths[:, None]
        gradient = gradient * real[None, :, :, None]
        seen = torch.stack([stream[layer] for layer in range(len(layers))], 1)
        return list(zip(values.detach().cpu(), gradient.unbind(1), seen.cpu()))

    with session.uncontrolled():
        found = session.runner.in_batches(rows, run, "Reading gradients")
    values, gradient, stream = zip(*found)
    return Gradients(torch.stack(values), torch.stack(gradient, 1), torch.stack(stream))


@torch.no_grad()
def stream_norms(session: Session, prompts: Sequence[Sequence[int]], width: int) -> Tensor:
    """|h| of every block's output at every token of the prompts, uncontrolled: [layer, prompt, width], 0 before the first token."""

    def run(batch: Batch) -> list[Tensor]:
        rows, length = batch.input_ids.shape
        norms: list[Tensor] = []
        nothing = torch.zeros(rows, 1, session.layout.d_model, device=session.device)
        ends = torch.full((rows,), length - 1, device=session.device)
        with adding(session.model, session.layout, lambda layer: nothing, ends, lambda layer, x: norms.append(x.float().norm(dim=-1))):
            session.decoder(**batch.inputs())
        stacked = torch.stack(norms)
        return [stacked[:, row, length - len(prompts[index]) :, None] for row, index in enumerate(batch.rows)]

    with session.uncontrolled():
        found = session.runner.in_batches(prompts, run, "Reading norms")
    return right_aligned(found, width)[..., 0]


@torch.no_grad()
def stream_at_ends(session: Session, prompts: Sequence[Sequence[int]], given: Tensor) -> Tensor:
    """The stream at each prompt's last token with `given` [layer, prompt, width, d_model] added: [prompt, layer, d_model]."""

    def run(batch: Batch) -> list[Tensor]:
        here = given[:, list(batch.rows)].to(session.device)
        seen: list[Tensor] = []
        ends = torch.full((len(batch.rows),), batch.input_ids.shape[1] - 1, device=session.device)
        with adding(session.model, session.layout, here.__getitem__, ends, lambda layer, x: seen.append(x[:, -1].float())):
            session.decoder(**batch.inputs())
        return list(torch.stack(seen, 1).cpu())

    with session.uncontrolled():
        return torch.stack(session.runner.in_batches(prompts, run, "Reading states"))


def opened_with(session: Session, prompts: Sequence[Sequence[int]], given: Tensor, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The least that must be added to the last block's output at each prompt's last token for a reply to open with `tokens`.

    Nothing but the first reply token depends on that place, so what follows the opening is as it was. Returns
    [prompt, d_model], to be added to `given` [layer, prompt, width, d_model], and whether the token was reached [prompt].
    """
    openings = torch.tensor(list(tokens), device=session.device)
    more = torch.zeros(len(prompts), session.layout.d_model, device=session.device)
    reached = torch.zeros(len(prompts), dtype=torch.bool, device=session.device)
    for _ in range(TRIES):
        at = given.clone().to(session.device)
        at[-1, :, -1] += more

        def lead(logits: Tensor, rows: Sequence[int]) -> Tensor:
            token = openings[list(rows)][:, None]
            others = logits.scatter(1, token, float("-inf")).amax(1)
            return logits.gather(1, token)[:, 0] - others

        gradients = prompt_gradients(session, prompts, prompts, at, lead)
        reached = gradients.values.to(session.device) >= MARGIN
        if bool(reached.all()):
            break
        slope = gradients.gradient[-1, :, -1]
        # To first order; exact for two tokens behind an RMS norm, which a step along the gradient does not turn. Twice the margin,
        # because another token may overtake.
        step = (2 * MARGIN - gradients.values.to(session.device)) / slope.square().sum(-1).clamp_min(1e-12)
        more = torch.where(reached[:, None], more, more + step[:, None] * slope)
    return more, reached
