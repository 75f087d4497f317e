"""What one direction does when it is tried: bypass, induce and KL, on val prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..algebra import directions
from ..algebra.divergence import kl_divergence
from ..behaviours import Behaviour, Prompt, asked
from ..controls import ablate, add
from ..controls.direction import Candidate, Direction
from ..detect import Detector, present
from ..models import Session, Site
from ..progress import say
from .filter import Sets
from .select import why_not
from .signal import Signal, _log_odds

SELECTION_PROMPTS = 64  # of each set, in every evaluation of a candidate


class Evaluation:
    """Tries one direction after another on val prompts: by the token that tells, else by whole replies."""

    def __init__(self, session: Session, behaviour: Behaviour, sets: Sets, detector: Detector, signal: Signal) -> None:
        self.session, self.detector, self.signal = session, detector, signal
        self.induced: dict[Site, float] = {}
        self.shows, self.lacks = (asked(sets.val[name])[:SELECTION_PROMPTS] for name in ("shows", "lacks"))
        self.neutral = behaviour.set("neutral", "val", SELECTION_PROMPTS)
        if not self.neutral:
            say("neutral: none; what a direction changes elsewhere is measured on lacks instead.")
            self.neutral = self.lacks
        self.said = [sets.val[name][:SELECTION_PROMPTS] for name in ("shows", "lacks")] if behaviour.has_replies else []
        self.leaning = self._leaning() if self.said else 0.0
        self.base = session.logits(self.neutral, signal.after).double().log_softmax(-1)
        self.untouched = self._strength(self.shows)
        if not signal.tells and not self.said:
            say("No token at the start of a reply tells the behaviour; directions are compared by whole replies, which takes longer.")

    def candidate(self, direction: Direction, limit: int) -> Candidate:
        with self.session.controlled(ablate(direction)):
            bypass = self._strength(self.shows)
            edited = self.session.logits(self.neutral, self.signal.after).double().log_softmax(-1)
        kl = float(kl_divergence(self.base, edited).mean())
        induce, gap = self._induce(direction), abs(direction.gap)
        made = Candidate(direction.site, direction.estimator, bypass, induce, kl, direction.auroc, direction.separation, gap)
        return replace(made, discarded=why_not(made.row(), limit))

    def _induce(self, direction: Direction) -> float:
        """Strength on `lacks` with the class gap of the direction's site added: the same for every estimator there."""
        if direction.site not in self.induced:
            gap = directions.mean_difference(direction.shows.mean, direction.lacks.mean).float()
            with self.session.controlled(add(replace(direction, basis=gap[None]), 1.0, "read")):
                self.induced[direction.site] = self._strength(self.lacks)
        return self.induced[direction.site]

    def _leaning(self) -> float:
        """How much likelier the given `shows` replies are to the model than the `lacks` replies: nats per reply token."""
        likelihoods = [
            self.session.reply_log_likelihoods(prompts, [self.session.encode_reply(prompt.reply or "") for prompt in prompts])
            for prompts in self.said
        ]
        shows, lacks = (float(torch.cat(rows).double().mean()) for rows in likelihoods)
        return shows - lacks

    def _strength(self, prompts: Sequence[Prompt]) -> float:
        """How strongly the model now tends to the behaviour, as log-odds; for replies as data, by how much more than by itself."""
        if self.said:
            return self._leaning() - self.leaning
        if self.signal.tells:
            return float(_log_odds(self.session.logits(prompts, self.signal.after), self.signal.first_tokens).mean())
        replies = [reply.text for reply in self.session.generate(prompts)]
        shown = sum(present(self.detector, replies, prompts))
        return math.log((shown + 0.5) / (len(prompts) - shown + 0.5))
