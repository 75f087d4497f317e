"""Whether a reply says something, where a behaviour is gone: a model that talks nonsense refuses nothing either.

A reply is garbled where the untouched model finds most of its tokens far less likely than those of its own reply to the same prompt. The
median token decides: what a control brings back begins with a token that the untouched model would never say, and goes on plainly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..behaviours import Prompt
from ..models import Reply
from ..models.thinking import spoken
from .degeneration import repetition
from .ledger import Ledger

GARBLED = 2.0  # nats by which the median token of a reply is less likely than that of the untouched model's
REPEATED = 0.5  # share of 4-grams that came before
LETTERS = 0.5  # least share of a reply's letters among all that is no space


def garbled(ledger: Ledger, prompts: Sequence[Prompt], replies: Sequence[Reply], budget: int) -> list[bool]:
    """Which replies the untouched model finds garbled beside its own of at most `budget` tokens; empty replies are not."""
    if not prompts:
        return []
    own = ledger.replies(prompts, budget)
    both = [(prompt, reply.ids) for said in (replies, own) for prompt, reply in zip(prompts, said, strict=True)]
    with ledger.session.uncontrolled():
        likely = ledger.session.reply_log_likelihoods([prompt for prompt, _ in both], [ids for _, ids in both])
    median = torch.tensor([float(-row.median()) if len(row) else 0.0 for row in likely]).view(2, -1)
    return (median[0] > median[1] + GARBLED).tolist()


def says_something(text: str) -> bool:
    """Whether a text has words that are not for the most part repeated."""
    said = "".join(spoken(text).split())
    letters = sum(letter.isalpha() for letter in said)
    return bool(said) and letters >= LETTERS * len(said) and repetition(spoken(text)) <= REPEATED
