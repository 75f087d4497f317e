"""What one direction does when it is tried: bypass, induce and KL, on val prompts."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace

import torch

from ..algebra import directions
from ..algebra.divergence import kl_divergence
from ..behaviours import SetName, asked
from ..controls import Control, ablate, add
from ..controls.direction import Candidate, Direction
from ..measure.bench import Bench
from ..models import Site
from ..progress import say, warn
from .filter import Sets
from .select import why_not
from .signal import Signal, _log_odds

SELECTION_PROMPTS = 64  # of each set, in every evaluation of a candidate


class Evaluation:
    """Tries one direction after another on val prompts: by the token that tells, else by whole replies."""

    def __init__(self, bench: Bench, sets: Sets, signal: Signal) -> None:
        self.bench, self.session, self.signal = bench, bench.session, signal
        behaviour, session = bench.behaviour, bench.session
        self.induced: dict[Site, float] = {}
        self.shows, self.lacks = (asked(sets.val[name])[:SELECTION_PROMPTS] for name in ("shows", "lacks"))
        self.neutral = behaviour.set("neutral", "val", SELECTION_PROMPTS)
        if not self.neutral:
            warn("neutral: none; what a direction changes elsewhere is measured on lacks instead.")
            self.neutral = self.lacks
        self.said = [sets.val[name][:SELECTION_PROMPTS] for name in ("shows", "lacks")] if behaviour.has_replies else []
        self.leaning = self._leaning() if self.said else 0.0
        self.base = session.logits(self.neutral, signal.after).double().log_softmax(-1)
        self.untouched = self._strength("shows", None)
        if not signal.tells and not self.said:
            say("No token at the start of a reply tells the behaviour; directions are compared by whole replies, which takes longer.")

    def candidate(self, direction: Direction, limit: int) -> Candidate:
        ablated = ablate(direction)
        bypass = self._strength("shows", ablated)
        with self.session.controlled(ablated):
            edited = self.session.logits(self.neutral, self.signal.after).double().log_softmax(-1)
        kl = float(kl_divergence(self.base, edited).mean())
        induce, gap = self._induce(direction), abs(direction.gap)
        candidate = Candidate(
            site=direction.site,
            estimator=direction.estimator,
            bypass=bypass,
            induce=induce,
            kl=kl,
            auroc=direction.auroc,
            separation=direction.separation,
            gap=gap,
        )
        return replace(candidate, discarded=why_not(candidate.row(), limit))

    def _induce(self, direction: Direction) -> float:
        """Strength on `lacks` with the class gap of the direction's site added: the same for every estimator there."""
        if direction.site not in self.induced:
            gap = directions.mean_difference(direction.shows.mean, direction.lacks.mean).float()
            self.induced[direction.site] = self._strength("lacks", add(replace(direction, basis=gap[None]), 1.0, "read"))
        return self.induced[direction.site]

    def _leaning(self) -> float:
        """How much likelier the given `shows` replies are to the model than the `lacks` replies: nats per reply token."""
        likelihoods = [
            self.session.reply_log_likelihoods(prompts, [self.session.encode_reply(prompt.reply or "") for prompt in prompts])
            for prompts in self.said
        ]
        shows, lacks = (float(torch.cat(rows).double().mean()) for rows in likelihoods)
        return shows - lacks

    def _strength(self, name: SetName, control: Control | None) -> float:
        """How strongly the model tends to the behaviour on a set, as log-odds; for replies as data, by how much more than by itself."""
        prompts = {"shows": self.shows, "lacks": self.lacks}[name]
        if not self.said and not self.signal.tells:
            shown = self.bench.on({name: prompts}).try_(control).observation.shown(name)
            return math.log((sum(shown) + 0.5) / (len(shown) - sum(shown) + 0.5))
        with nullcontext() if control is None else self.session.controlled(control):
            if self.said:
                return self._leaning() - self.leaning
            return float(_log_odds(self.session.logits(prompts, self.signal.after), self.signal.first_tokens).mean())
