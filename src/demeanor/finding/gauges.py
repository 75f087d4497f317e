"""How strongly a model tends to a behaviour, and how far it is moved elsewhere, told without a whole reply where that can be.

Four gauges read the same two things. `FirstTokens` reads the token that tells what will come. `GivenReplies` reads how likely replies are
that came as data. `ShortReplies` has the detector judge beginnings of replies, which tells for every behaviour. `WholeReplies` generates to
the end. Which one is used is decided in `gauge_for`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..algebra.divergence import kl_divergence
from ..behaviours import Prompt, SetName
from ..controls import Control
from ..detect import likely, present
from ..measure.bench import Bench
from ..models import Reply, Session
from ..progress import say, track
from .signal import Signal, log_odds

TOKENS = 12  # of the model's own replies to neutral prompts
ROWS = 96  # of one batch of short replies
LENGTHS = (8, 12, 16, 24, 32)  # of short replies, the first that tells
AGREE = 0.9  # share of short replies of which the detector says what it says of whole ones
LEAST = 1e-6  # a share that log-odds are taken of


@dataclass(frozen=True)
class Strength:
    """Mean log-odds (or, of given replies, nats per token) of the behaviour, and the share of it that is there: 1 where it is untouched."""

    odds: float
    share: float


class Gauge(Protocol):
    """What a control does: to the behaviour on `shows` or `lacks`, and to neutral prompts, in nats per token.

    variation: the entropy of the untouched model's tokens at the same places of neutral prompts, nats per token.
    """

    variation: float

    def strength(self, name: SetName, control: Control | None) -> Strength: ...

    def strengths(self, name: SetName, controls: Sequence[Control]) -> list[Strength]:
        """`strength` of each of several controls."""
        return [self.strength(name, control) for control in track(controls, "Trying directions", len(controls))]

    def change(self, control: Control) -> float: ...


@dataclass(frozen=True)
class Tried:
    """The val prompts that candidates are tried on; `given` are those whose replies came as data."""

    shows: list[Prompt]
    lacks: list[Prompt]
    neutral: list[Prompt]
    given: tuple[list[Prompt], list[Prompt]] | None = None

    def first(self, count: int) -> Tried:
        """The first of every set: half as many neutral ones, which tell more each."""
        given = None if self.given is None else (self.given[0][:count], self.given[1][:count])
        return Tried(self.shows[:count], self.lacks[:count], self.neutral[: max(1, count // 2)], given)

    def of(self, name: SetName) -> list[Prompt]:
        return self.shows if name == "shows" else self.lacks


def gauge_for(bench: Bench, signal: Signal, tried: Tried) -> Gauge:
    """Given replies are read where there are some. A small model is read by the token that tells, or by whole replies; others by short replies."""
    if tried.given is not None:
        return GivenReplies(bench, signal, tried)
    if not bench.session.runner.small:
        return ShortReplies(bench, tried)
    return FirstTokens(bench, signal, tried) if signal.tells else WholeReplies(bench, signal, tried)


class _FirstTokenChange(Gauge):
    """How the first token of replies to neutral prompts changes."""

    def __init__(self, bench: Bench, signal: Signal, tried: Tried) -> None:
        self.bench, self.session, self.signal, self.tried = bench, bench.session, signal, tried
        self.base = self._neutral()
        self.variation = float(_entropy(self.base).mean())

    def _neutral(self) -> Tensor:
        return self.session.logits(self.tried.neutral, self.signal.after).double().log_softmax(-1)

    def change(self, control: Control) -> float:
        with self.session.controlled(control):
            return float(kl_divergence(self.base, self._neutral()).mean())


class FirstTokens(_FirstTokenChange):
    """The log-odds of the tokens that stand for the behaviour."""

    def strength(self, name: SetName, control: Control | None) -> Strength:
        with _acting(self.session, control):
            odds = log_odds(self.session.logits(self.tried.of(name), self.signal.after), self.signal.first_tokens)
        return Strength(float(odds.mean()), float(odds.sigmoid().mean()))


class WholeReplies(_FirstTokenChange):
    """The rate of the behaviour in greedy replies."""

    def __init__(self, bench: Bench, signal: Signal, tried: Tried) -> None:
        super().__init__(bench, signal, tried)
        say("No token at the start of a reply tells the behaviour; directions are compared by whole replies, which takes longer.")

    def strength(self, name: SetName, control: Control | None) -> Strength:
        shown = self.bench.on({name: self.tried.of(name)}).try_(control).observation.shown(name)
        return Strength(math.log((sum(shown) + 0.5) / (len(shown) - sum(shown) + 0.5)), sum(shown) / len(shown))


class GivenReplies(_FirstTokenChange):
    """How much likelier the given `shows` replies are than the `lacks` replies, nats per reply token, against the untouched model."""

    def __init__(self, bench: Bench, signal: Signal, tried: Tried) -> None:
        super().__init__(bench, signal, tried)
        self.leaning = self._leaning()

    def _leaning(self) -> float:
        likelihoods = [
            self.session.reply_log_likelihoods(prompts, [self.session.encode_reply(prompt.reply or "") for prompt in prompts])
            for prompts in self.tried.given or ()
        ]
        shows, lacks = (float(torch.cat(rows).double().mean()) for rows in likelihoods)
        return shows - lacks

    def strength(self, name: SetName, control: Control | None) -> Strength:
        with _acting(self.session, control):
            odds = self._leaning() - self.leaning
        return Strength(odds, math.exp(min(0.0, odds)))


class ShortReplies(Gauge):
    """The detector on the beginnings of greedy replies, as short as tell; change is read along the untouched model's own replies.

    What the model said is not asked to stay likely: a refusal in other words is a refusal (decision 37).
    """

    def __init__(self, bench: Bench, tried: Tried) -> None:
        self.session, self.tried, self.detector = bench.session, tried, bench.detector
        self.length = self._telling(bench)
        replies = [reply.ids[:TOKENS] for reply in bench.ledger.replies(tried.neutral, bench.budget)] if tried.neutral else []
        self.neutral = [(prompt, ids) for prompt, ids in zip(tried.neutral, replies) if ids]
        self.base = bench.ledger.reply_log_probs(*_both(self.neutral))
        self.variation = _mean([_entropy(rows) for rows in self.base])

    def _telling(self, bench: Bench) -> int:
        """The least reply tokens by which the detector sees what it sees in whole replies of the untouched model."""
        prompts = [*self.tried.shows, *self.tried.lacks]

        def shown(length: int) -> list[bool]:
            return present(self.detector, [reply.text for reply in bench.ledger.replies(prompts, length)], prompts)

        whole = shown(bench.budget)
        for length in (length for length in LENGTHS if length < bench.budget):
            if sum(one == other for one, other in zip(shown(length), whole)) >= AGREE * len(prompts):
                return length
        return bench.budget

    def strength(self, name: SetName, control: Control | None) -> Strength:
        prompts = self.tried.of(name)
        with _acting(self.session, control):
            return self._seen(prompts, self.session.generate(prompts, self.length))

    def strengths(self, name: SetName, controls: Sequence[Control]) -> list[Strength]:
        """Several controls as rows of one batch: a token of many rows costs little more than one of few."""
        prompts, seen = self.tried.of(name), []
        at_once = max(1, ROWS // len(prompts))
        chunks = [controls[start : start + at_once] for start in range(0, len(controls), at_once)]
        for some in track(chunks, "Trying directions", len(chunks)):
            with self.session.controlled_rows([control for control in some for _ in prompts]):
                replies = self.session.generate(prompts * len(some), self.length)
            seen += [self._seen(prompts, replies[start : start + len(prompts)]) for start in range(0, len(replies), len(prompts))]
        return seen

    def _seen(self, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> Strength:
        shown = likely(self.detector, [reply.text for reply in replies], prompts)
        share = sum(shown) / len(shown)
        bounded = min(max(share, LEAST), 1 - LEAST)
        return Strength(math.log(bounded) - math.log1p(-bounded), share)

    def change(self, control: Control) -> float:
        with self.session.controlled(control):
            edited = self.session.reply_log_probs(*_both(self.neutral))
        return _mean([kl_divergence(p, q) for p, q in zip(self.base, edited, strict=True)])


def _acting(session: Session, control: Control | None) -> AbstractContextManager[Any]:
    return nullcontext() if control is None else session.controlled(control)


def _both(pairs: Sequence[tuple[Prompt, Sequence[int]]]) -> tuple[list[Prompt], list[Sequence[int]]]:
    return [prompt for prompt, _ in pairs], [ids for _, ids in pairs]


def _entropy(log_probs: Tensor) -> Tensor:
    """Of distributions [..., vocab], nats."""
    return -(log_probs.exp() * log_probs).nan_to_num(nan=0.0).sum(-1)


def _mean(rows: Sequence[Tensor]) -> float:
    return float(torch.cat([row.double() for row in rows]).mean())
