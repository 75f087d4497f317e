"""What is kept of a row's teacher-forced log-probabilities [token, vocab]: things that can be sent to another process and act there.

Each is called with the row's number and the log-probabilities, as `LanguageModel.teacher_forced` says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class RowValue(ABC):
    """Something small that is computed of a row where its log-probabilities are."""

    @abstractmethod
    def __call__(self, number: int, log_probs: Tensor) -> Tensor: ...


class AllOfThem(RowValue):
    """The log-probabilities themselves."""

    def __call__(self, number: int, log_probs: Tensor) -> Tensor:
        return log_probs


@dataclass(frozen=True, eq=False)
class OwnTokens(RowValue):
    """Log-probabilities of each row's own tokens: [token]."""

    tokens: Sequence[Sequence[int]]

    def __call__(self, number: int, log_probs: Tensor) -> Tensor:
        own = torch.tensor(self.tokens[number], dtype=torch.long, device=log_probs.device)
        return log_probs.gather(1, own[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class Greedy(RowValue):
    """The sum of what each row's own tokens have, and one where they are what greedy decoding says: [2], float64."""

    tokens: Sequence[Sequence[int]]

    def __call__(self, number: int, log_probs: Tensor) -> Tensor:
        own = torch.tensor(self.tokens[number], dtype=torch.long, device=log_probs.device)
        return torch.stack([log_probs.gather(1, own[:, None]).double().sum(), (log_probs.argmax(-1) == own).all().double()])
