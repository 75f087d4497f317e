"""How far the residual stream points along a direction, at every layer and token of a prompt and its reply."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..behaviours import Prompt, as_prompt
from ..errors import DataError
from ..runtime.acting import Acting
from ..runtime.batches import Batch
from ..runtime.capture import one_stream

if TYPE_CHECKING:
    from .session import Session


@dataclass(frozen=True)
class Projections:
    """Cosines of resid_post with a direction: `values` [layer, token], between -1 and 1. `tokens` are their texts, the prompt's first."""

    tokens: tuple[str, ...]
    prompt_tokens: int
    values: Tensor

    def __str__(self) -> str:
        layer, token = divmod(int(self.values.abs().argmax()), len(self.tokens))
        return (
            f"{len(self.values)} layers, {len(self.tokens)} tokens ({self.prompt_tokens} of the prompt); furthest from 0: "
            f"{self.values[layer, token]:+.2f} at layer {layer}, token {self.tokens[token]!r}."
        )


def projections(session: Session, prompt: str | Prompt, direction: Tensor, reply: str | None = None) -> Projections:
    """The stream behind every layer, along a direction [d_model], under whatever is in force.

    `reply` is what was said to the prompt (its own unless given), read as if the model said it now. Raises DataError for a direction of another size.
    """
    if direction.shape != (session.layout.d_model,):
        raise DataError(f"The direction has the shape {list(direction.shape)}; the model's stream has {session.layout.d_model} channels.")
    prompt = as_prompt(prompt)
    reply = prompt.reply if reply is None else reply
    said = session.encode_reply(reply) if reply else []
    start = session.encode(prompt)
    ids = [*start, *said]
    session.refuse_too_long(ids, prompt.text)

    def run(batch: Batch) -> list[Tensor]:
        with session.runner.replying(torch.tensor([len(said)])), _Projecting(session, direction).attached() as projecting, torch.no_grad():
            session.decoder(**batch.inputs())
        return [torch.stack([projecting.seen[layer] for layer in range(session.layout.n_layers)])]

    (values,) = session.runner.in_batches([ids], run, "Projecting")
    return Projections(tuple(str(session.tokenizer.decode([token])) for token in ids), len(start), values[:, -len(ids) :])


class _Projecting(Acting):
    def __init__(self, session: Session, direction: Tensor) -> None:
        super().__init__(session.model)
        self.layout, self.direction = session.layout, direction.double() / direction.double().norm()
        self.seen: dict[int, Tensor] = {}

    def lay(self) -> None:
        for layer, block in enumerate(self.layout.blocks):
            self.on_output(self.model.get_submodule(block), partial(self._keep, layer))

    def _keep(self, layer: int, value: Any) -> None:
        stream = one_stream(self.by_rows(value), 1, self.layout.d_model)[0].double().cpu()
        self.seen[layer] = (stream @ self.direction.cpu() / stream.norm(dim=-1).clamp_min(1e-30)).float()
