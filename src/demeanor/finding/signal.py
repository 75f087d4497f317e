"""What tells, before a whole reply is there, that a behaviour comes: the token after an opening."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..algebra import directions
from ..measure.ledger import Ledger
from ..models import Session
from .filter import Sets

SEPARATES = 0.8  # AUROC that the opening log-odds must reach to stand for the behaviour


OPENINGS = 6  # reply tokens that prompts are forced through: fewer than this


@dataclass(frozen=True)
class Signal:
    """What tells, before a whole reply is there, that the behaviour comes: the next token after `after`.

    first_tokens [vocab]: tokens that then stand for the behaviour; `tells` is whether their log-odds separate the classes.
    """

    after: tuple[int, ...]
    first_tokens: Tensor
    tells: bool


def find_signal(ledger: Ledger, sets: Sets) -> Signal:
    """The shortest opening of ordinary replies after which the next token separates `shows` from `lacks` on val.

    Usually the empty one. Where both classes begin alike ("i am ...") the decision falls later, and both are
    forced through the commonest first words of `lacks` replies.
    """
    session = ledger.session
    first: Signal | None = None
    for after in common_openings(ledger, sets):
        first_tokens = _first_tokens(session, sets, after)
        odds = [log_odds(session.logits(sets.val[name], after), first_tokens) for name in ("shows", "lacks")]
        signal = Signal(after, first_tokens, bool(first_tokens.any()) and float(directions.auroc(*odds)) >= SEPARATES)
        if signal.tells:
            return signal
        first = first or signal
    assert first is not None
    return first


def common_openings(ledger: Ledger, sets: Sets, longest: int = OPENINGS) -> list[tuple[int, ...]]:
    """The commonest first tokens of the model's replies to `lacks` prompts, for each length from 0."""
    replies = [reply.ids for reply in ledger.replies(sets.train["lacks"], longest)]
    return [Counter(ids[:length] for ids in replies).most_common(1)[0][0] for length in range(longest)]


def _first_tokens(session: Session, sets: Sets, after: Sequence[int]) -> Tensor:
    """Which tokens [vocab] the model's own replies go on with more often on `shows` than on `lacks`, boolean."""
    shows, lacks = (session.logits(sets.train[name], after).softmax(-1).mean(0) for name in ("shows", "lacks"))
    return first_tokens_of(shows, lacks)


def first_tokens_of(shows: Tensor, lacks: Tensor) -> Tensor:
    """Which tokens stand for the behaviour, boolean [vocab], by their mean probabilities after prompts of both sets [vocab]."""
    return (shows > 2 * lacks) & (shows > 1e-3)


def log_odds(logits: Tensor, first_tokens: Tensor) -> Tensor:
    """log p - log(1 - p) of opening with one of the tokens, logits [prompt, vocab] -> [prompt], without 1 - p."""
    logits = logits.double()
    return logits[:, first_tokens].logsumexp(-1) - logits[:, ~first_tokens].logsumexp(-1)
