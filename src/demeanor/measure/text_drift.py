"""How far a control moves the model on plain prose: what it costs where nobody talks to it.

The prose comes with the package: sixty paragraphs on many subjects. The model reads it as text, without a chat template. The opening of
each is given, and the rest is compared token by token, as replies are in `drift`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources

import torch

from ..algebra.divergence import kl_divergence
from ..controls import Control
from ..errors import CheckFailed
from ..models import Session
from ..progress import say
from ..stats import intervals
from ..stats.score import Score
from .condition import Condition
from .ledger import KEPT, Ledger

NAME = "drift_text"
OPENING, COMPARED = 16, 64  # tokens of a paragraph that are given, and at most that are compared
UNKNOWN = 0.1  # share of tokens that the vocabulary does not know, from which on the model cannot be said to read
PIECES = 2.0  # tokens to a word from which on it spells rather than reads
Ids = Sequence[int]


@lru_cache(maxsize=1)
def paragraphs() -> tuple[str, ...]:
    """The prose, a text per paragraph of 80 to 100 words."""
    text = (resources.files(__package__) / "prose.txt").read_text(encoding="utf-8")
    return tuple(text.strip().split("\n\n"))


def text_drift(session: Session, control: Control | None) -> Score:
    """KL(untouched || controlled) over the paragraphs, nats per token, with a bootstrap interval over paragraphs.

    n = 0 where the model has no words for such prose, which is said. CheckFailed when what is computed is no number.
    """
    return text_drift_of(Ledger(session), Condition(session, control), readable(session))


def text_drift_of(base: Ledger, after: Condition, texts: Sequence[tuple[Ids, Ids]]) -> Score:
    """The same over texts that `readable` gave, to a condition of the base or of another model with its vocabulary."""
    per_chunk = max(1, KEPT // (COMPARED * base.session.vocabulary))
    rows = [row for start in range(0, len(texts), per_chunk) for row in _kept(base, after, texts[start : start + per_chunk])]
    tokens, kl_sum = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2).T
    return intervals.mean(NAME, kl_sum / tokens, tokens, better="lower")


def readable(session: Session) -> list[tuple[Ids, Ids]]:
    """The opening and the rest of every paragraph as token ids; none, and said so, where the vocabulary has no words for them."""
    bare = [session.encode_reply(text) for text in paragraphs()]
    count = sum(map(len, bare))
    unknown = sum(ids.count(session.tokenizer.unk_token_id) for ids in bare) / count
    pieces = count / sum(len(text.split()) for text in paragraphs())
    if unknown >= UNKNOWN or pieces >= PIECES:
        say(
            f"{session.name} has no words for plain prose ({100 * unknown:.0f} % of its tokens unknown, {pieces:.1f} tokens to a word); drift on it is not told."
        )
        return []
    whole = [session.encode_opened(text)[: OPENING + COMPARED] for text in paragraphs()]
    longest = session.longest if session.longest is not None else math.inf
    return [(ids[:OPENING], ids[OPENING:]) for ids in whole if OPENING < len(ids) <= longest]


def _kept(base: Ledger, after: Condition, texts: Sequence[tuple[Ids, Ids]]) -> list[tuple[float, float]]:
    """`_compared`, from the base's journal where it was computed before."""
    if not base.journal.keeps or after.digest is None:
        return _compared(base.session, after, texts)
    kept: list[tuple[float, float]] = base.journal.recall((NAME, after.digest, texts), lambda: _compared(base.session, after, texts))
    return kept


def _compared(base: Session, after: Condition, texts: Sequence[tuple[Ids, Ids]]) -> list[tuple[float, float]]:
    """Per text: tokens compared, and the sum of KL over them."""
    starts, rests = [opening for opening, _ in texts], [rest for _, rest in texts]
    if after.control is None and after.session is base:
        return [(float(len(rest)), 0.0) for rest in rests]  # a text before system prompts finds none here
    plain, moved = base.text_log_probs(starts, rests), after.text_log_probs(starts, rests)
    if not all(row.isfinite().all() for row in moved):
        raise CheckFailed(f"With this control {after.session.name} no longer computes numbers; use a smaller dose.")
    return [(float(len(p)), float(kl_divergence(p.double(), q.double()).sum())) for p, q in zip(plain, moved, strict=True)]
