"""Choosing a next token: greedily, or from the likeliest tokens whose probabilities sum to top_p, with a generator of its own per request."""

from __future__ import annotations

import torch
from torch import Tensor

from .engine import Sampling, Token


class Sampler:
    """Chooses the tokens of one reply. The same seed chooses the same from the same logits, whoever else is served."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is not None:
            self._generator.manual_seed(sampling.seed)
        else:
            self._generator.seed()

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is all that is asked for."""
        return self.sampling.temperature == 0 and self.sampling.top is None

    def choose(self, logits: Tensor) -> Token:
        """From logits [vocab], float32. Log-probabilities are those of the model, at temperature 1."""
        logits = logits.cpu()
        chosen = int(logits.argmax()) if self.sampling.temperature == 0 else self._sampled(logits)
        if self.sampling.top is None:
            return Token(chosen)
        log_probs = logits.log_softmax(-1)
        best = log_probs.topk(min(self.sampling.top, len(log_probs)))
        top = tuple(zip(best.indices.tolist(), best.values.tolist()))
        return Token(chosen, float(log_probs[chosen]), top)

    def _sampled(self, logits: Tensor) -> int:
        probabilities = (logits.double() / self.sampling.temperature).softmax(-1)
        if self.sampling.top_p >= 1:
            return int(torch.multinomial(probabilities, 1, generator=self._generator))
        ordered, index = probabilities.sort(descending=True, stable=True)
        kept = ordered * (ordered.cumsum(-1) - ordered < self.sampling.top_p)  # the first one always is
        return int(index[torch.multinomial(kept, 1, generator=self._generator)])
