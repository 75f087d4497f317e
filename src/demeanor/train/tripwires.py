"""Tripwires: signs that a reward is being gamed, not earned.

A reward can rise because replies are empty, in another script, very short or long, or no answer to their prompt. Each of these is
counted over the latest replies and compared with what the model said before it was trained.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..behaviours import Prompt
from ..measure.degeneration import non_latin
from ..measure.on_topic import on_topic
from ..models import Session
from ..models.thinking import spoken

WINDOW = 64  # replies that are looked back on
BASELINE = 64  # prompts of the model before


@dataclass(frozen=True)
class Sign:
    """What one reply shows: whether it is empty or off topic, which share of its letters is not Latin, how many tokens it has.

    A share, because a reply that is in another script by a third is on its way there.
    """

    empty: bool
    other_script: float
    off_topic: bool
    length: int


@dataclass(frozen=True)
class Shares:
    """Means of signs over replies."""

    empty: float
    other_script: float
    off_topic: float
    length: float

    @classmethod
    def of(cls, signs: Sequence[Sign]) -> Shares:
        count = len(signs)
        return cls(
            sum(sign.empty for sign in signs) / count, sum(sign.other_script for sign in signs) / count,
            sum(sign.off_topic for sign in signs) / count, sum(sign.length for sign in signs) / count,
        )  # fmt: skip


@dataclass(frozen=True)
class Bounds:
    """How far the latest replies may be from those before: shares by so much, lengths by so many times."""

    shift: float = 0.1
    off_topic: float = 0.25
    length: float = 2.0


class Tripwires:
    """Watches the replies of a training; `tripped` says in one sentence what went wrong, None while nothing has."""

    def __init__(self, session: Session, prompts: Sequence[Prompt], bounds: Bounds, temperature: float, seed: int = 0) -> None:
        """`prompts` are what is trained on; replies to the first of them are sampled as they will be in the training."""
        self.session, self.prompts, self.bounds = session, prompts, bounds
        asked = prompts[:BASELINE]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            replies = session.generate(asked, temperature=temperature)
        self.before = Shares.of(self.signs(asked, [reply.ids for reply in replies], [reply.text for reply in replies]))
        self.latest: deque[Sign] = deque(maxlen=WINDOW)
        self.tripped: str | None = None

    def signs(self, prompts: Sequence[Prompt], ids: Sequence[Sequence[int]], texts: Sequence[str]) -> list[Sign]:
        said = [spoken(text) for text in texts]
        bare = [[token for token in row if token not in self.session.end_ids] for row in ids]
        topical = on_topic(self.session, prompts, bare, self.prompts) or [True] * len(said)
        return [
            Sign(not text.strip(), non_latin(text), bool(text.strip()) and not here, len(row))
            for text, here, row in zip(said, topical, bare, strict=True)
        ]

    def watch(self, signs: Sequence[Sign], log: Callable[[str, float], None]) -> None:
        """Take in further replies (of every process), log each tripwire, and trip where one is crossed."""
        self.latest.extend(signs)
        now = Shares.of(list(self.latest))
        for name in ("empty", "other_script", "off_topic", "length"):
            log(f"tripwire/{name}", float(getattr(now, name)))
        if self.tripped is None and len(self.latest) == WINDOW:
            self.tripped = self._complaint(now)

    def _complaint(self, now: Shares) -> str | None:
        was, bounds = self.before, self.bounds
        complaint = (
            (now.empty - was.empty > bounds.shift, f"{now.empty:.0%} of the last {WINDOW} replies are empty ({was.empty:.0%} before)"),
            # Either way: where replies were in another script, it is Latin letters that give the change away.
            (
                abs(now.other_script - was.other_script) > bounds.shift,
                f"the script changed: {now.other_script:.0%} of the letters of a reply are not Latin ({was.other_script:.0%} before)",
            ),
            (
                now.off_topic - was.off_topic > bounds.off_topic,
                f"{now.off_topic:.0%} of the last {WINDOW} replies are no answer to their prompts ({was.off_topic:.0%} before)",
            ),
            (
                not was.length / bounds.length <= now.length <= was.length * bounds.length,
                f"replies are {now.length:.0f} tokens long ({was.length:.0f} before)",
            ),
        )
        sign = next((sentence for crossed, sentence in complaint if crossed), None)
        return None if sign is None else f"A tripwire stopped the training: {sign}; the reward is being gamed."
