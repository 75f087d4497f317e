"""The gradient of the suffix score with respect to the stream at a prompt, and steps made of it. algorithms.md, section 8.

The model is asked about a reply it gave, and told nothing but the exchange. Where the prompt's states would have to go for
the answer to be the wanted one is the gradient; it is taken where the search stands, with what was added so far in force
at the prompt's positions and nothing added to reply and question. Whether a step is taken is decided by the uncontrolled
model alone, which reads the new reply without anything added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..detect.suffix import TEMPERATURE, Suffix
from ..models import Session
from .prompt_gradients import Gradients, prompt_gradients

TINY = 1e-12


def suffix_gradients(
    session: Session,
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[int]],
    suffixes: Sequence[Suffix],
    given: Tensor,
    temperature: float = TEMPERATURE,
) -> Gradients:
    """S per exchange and its gradient, at what is `given` [layer, prompt, width, d_model] and with respect to it.

    Prompts and replies are token ids, replies without an end token. Several questions count as in the score.
    """
    count = len(prompts)
    starts = [[*prompt, *reply] for prompt, reply in zip(prompts, replies, strict=True)]
    rows = [[*start, *part.ids] for part in suffixes for start in starts]
    weight = sum(part.weight for part in suffixes)

    def score(logits: Tensor, which: Sequence[int]) -> Tensor:
        parts = [suffixes[row // count] for row in which]
        return torch.stack([part.weight / weight * part.score(line, temperature) for part, line in zip(parts, logits)])

    gradients = prompt_gradients(session, rows, list(prompts) * len(suffixes), given.repeat(1, len(suffixes), 1, 1), score)
    folded = gradients.gradient.unflatten(1, (len(suffixes), count)).sum(1)
    return Gradients(gradients.values.reshape(len(suffixes), count).sum(0), folded, gradients.stream[:count])


def steps(gradient: Tensor, norms: Tensor, layers: int | None = None, top: int | None = None) -> Tensor:
    """One unit of a step [layer, prompt, width, d_model]: along the gradient, as long as the stream is there.

    norms [layer, prompt, width] are |h|. Raw gradients differ by orders of magnitude from place to place; thus a step of
    size eta moves every (layer, token) by the share eta of its norm. What that changes S by is |g| |h| at each place, to first
    order: with `layers`, only so many layers of each prompt are moved, and with `top` only so many (layer, token) places, those
    where it is greatest.
    """
    size = gradient.norm(dim=-1)
    scale = torch.where(size > TINY, norms / size.clamp_min(TINY), 0.0)
    effect = size * norms
    if layers is not None:
        scale = scale * _greatest(effect.sum(-1).T, layers).T[..., None]
    if top is not None:
        scale = scale * _greatest(effect.transpose(0, 1).flatten(1), top).unflatten(1, (len(norms), -1)).transpose(0, 1)
    return scale[..., None] * gradient


def _greatest(effect: Tensor, count: int) -> Tensor:
    """Which of effect [prompt, place] are among the `count` greatest of their row; of equals, the first ones."""
    places = effect.topk(min(count, effect.shape[1]), 1).indices
    return torch.zeros_like(effect, dtype=torch.bool).scatter(1, places, True)


def capped(values: Tensor, norms: Tensor, cap: float) -> Tensor:
    """values [..., d_model] with no more than the share `cap` of norms [...] at any place."""
    size = values.norm(dim=-1)
    share: Tensor = (cap * norms / size.clamp_min(TINY)).clamp_max(1.0)
    return values * share[..., None]


@dataclass(frozen=True)
class NormPattern:
    """Where a question's gradient is: means over prompts.

    layers [layer]: mean over tokens of |g|; effect [layer]: of |g| |h|, what moving a place by its own norm would change S by,
    to first order; tokens [layer, token]: |g| at the last tokens of all prompts, as many as the shortest has.
    """

    layers: Tensor
    effect: Tensor
    tokens: Tensor
    n: int

    def to_json(self) -> dict[str, Any]:
        return {"n": self.n, "layers": self.layers.tolist(), "effect": self.effect.tolist(), "tokens": self.tokens.tolist()}


def norm_pattern(gradient: Tensor, norms: Tensor, lengths: Sequence[int]) -> NormPattern:
    """The pattern of gradients [layer, prompt, width, d_model] of prompts of these lengths."""
    size = gradient.norm(dim=-1)
    tokens = torch.tensor(list(lengths))
    layers, effect = ((values.sum(-1) / tokens).mean(1) for values in (size, size * norms))
    return NormPattern(layers, effect, size[:, :, -int(tokens.min()) :].mean(1), len(lengths))
