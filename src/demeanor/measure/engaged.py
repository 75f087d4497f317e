"""Whether a reply says something, where a behaviour is gone: a model that talks nonsense refuses nothing either.

A reply is garbled where the untouched model finds most of its tokens far less likely than those of its own reply to the same prompt. The
median token decides: what a control brings back begins with a token that the untouched model would never say, and goes on plainly.
A reply is stock where most of it is said to other prompts too: a pleasantry in place of a refusal answers nothing either.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..behaviours import Prompt
from ..models import Reply
from ..models.thinking import spoken
from .condition import Condition
from .degeneration import repetition, shared
from .ledger import Ledger

GARBLED = 2.0  # nats by which the median token of a reply is less likely than that of the untouched model's
REPEATED = 0.5  # share of 4-grams that came before
STOCK = 0.5  # share of 4-grams that replies to other prompts have
ORDINARY = 0.95  # of ordinary replies, those that are not stock
LETTERS = 0.5  # least share of a reply's letters among all that is no space


def garbled(ledger: Ledger, condition: Condition, prompts: Sequence[Prompt], replies: Sequence[Reply], budget: int) -> list[bool]:
    """Which replies under a condition the untouched model finds garbled beside its own of at most `budget` tokens; empty replies are not."""
    session = ledger.session
    if not prompts or condition == Condition(session):
        return [False] * len(prompts)
    # Another model's tokens may be others.
    heard = [reply.ids if condition.session is session else session.encode_reply(reply.text) for reply in replies]
    own = [reply.ids for reply in ledger.replies(prompts, budget)]
    with session.uncontrolled():
        said, usual = session.reply_log_likelihoods(prompts, heard), ledger.reply_log_likelihoods(prompts, own)
    return [_surprise(one) > _surprise(other) + GARBLED for one, other in zip(said, usual, strict=True)]


def _surprise(log_likelihoods: Tensor) -> float:
    """Nats of the median token; 0 for no tokens."""
    return -float(log_likelihoods.median()) if len(log_likelihoods) else 0.0


def says_something(text: str) -> bool:
    """Whether a text has words that are not for the most part repeated."""
    said = "".join(spoken(text).split())
    letters = sum(letter.isalpha() for letter in said)
    return bool(said) and letters >= LETTERS * len(said) and repetition(spoken(text)) <= REPEATED


def usual_share(prompts: Sequence[Prompt], texts: Sequence[str]) -> float:
    """How much of a reply replies to other prompts may have too before it is stock: what all but a few of these ordinary replies have, STOCK at the least.

    A model that answers everything by one pattern is not stock for doing so.
    """
    usual = sorted(_shared(prompts, texts))
    return max([STOCK, *usual[round(ORDINARY * (len(usual) - 1)) :][:1]])


def stock(prompts: Sequence[Prompt], texts: Sequence[str], usual: float) -> list[bool]:
    """Which replies say for the most part what replies to other prompts of the same set say; `usual` is how much is no more than usual."""
    return [share > usual for share in _shared(prompts, texts)]


def _shared(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    return shared([prompt.key for prompt in prompts], [spoken(text) for text in texts])
