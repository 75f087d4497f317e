"""Trying directions of a model that stays on disk: many controls as rows of one second pass, read at the first token of a reply or along given replies.

It is what `FirstTokens` and `GivenReplies` read of a loaded model (`finding/gauges.py`). No reply is generated.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..algebra import directions
from ..algebra.divergence import kl_divergence
from ..algebra.schedule import layer_limit
from ..behaviours import Behaviour, BehaviourLike, Prompt, as_behaviour
from ..controls import ablate
from ..controls.direction import Candidate, Direction
from ..errors import AccountingError, DataError, NoCandidate
from ..models import StreamedSession
from ..models.ended import Ended, ended
from ..models.kept_pass import of_key
from ..progress import say
from ..version import __version__
from .evaluate import promising
from .filter import Sets, as_given
from .gauges import Strength
from .plan import FindPlan
from .select import KL_MAX, Rules, rank_key, table, why_not
from .signal import SEPARATES, first_tokens_of, log_odds
from .streamed import StreamedFindings

TOLD, TRIED, NEUTRAL = 64, 32, 16  # prompts of a set: from which the tokens are learnt, on which directions are tried, where nothing should change


def try_streamed(
    session: StreamedSession, behaviour: BehaviourLike, findings: StreamedFindings, count: int, folder: Path, plan: FindPlan | None = None
) -> StreamedFindings:
    """The findings with `count` of their directions tried, those of every depth that tell best, and ranked by what ablating them did; the others follow.

    Where no first token tells the behaviour, the order stays as it was, which is said. folder: where the pass keeps what it has. Raises
    NoCandidate where all that were tried are discarded, DataError where none can be tried.
    """
    plan = plan or FindPlan()
    behaviour = as_behaviour(behaviour, session)
    if plan.rank_by == "gap":
        raise DataError("Directions that are tried are ranked by what they did; leave out `tried`, or `rank_by`.")
    limit = layer_limit(session.layout.n_layers) if plan.layer is None else session.layout.n_layers
    # What is read along one vector and written along another acts at one site, in the middle of the pass.
    alike = [number for number, direction in enumerate(findings.directions) if direction.write is None]
    if not alike:
        raise DataError("Only directions that are read and written alike are tried block by block; leave out `tried`, or name another estimator.")
    numbers = [alike[number] for number in promising([findings.directions[number] for number in alike], count, limit)[:count]]
    trial = _Trial(session, behaviour, as_given(behaviour, plan.max_prompts), [findings.directions[number] for number in numbers])
    begun = session.shell.bytes_read
    candidates = trial.candidates(folder, limit)
    read = findings.bytes_read + session.shell.bytes_read - begun
    if candidates is None:
        say("No token at the start of a reply tells the behaviour; directions stay in the order of the statistics.")
        return replace(findings, bytes_read=read)
    tried = sorted(zip(numbers, candidates, strict=True), key=lambda pair: (bool(pair[1].discarded), *rank_key(pair[1].row(), "trade_off")))
    if all(candidate.discarded for candidate in candidates):
        raise NoCandidate(table([candidate.row() for candidate in candidates], [candidate.discarded for candidate in candidates]))
    rest = [number for number in range(len(findings.directions)) if number not in numbers]
    before = findings.directions[0].candidates
    every = (*(candidate for _, candidate in tried), *(before[number] for number in rest))
    order = [*(number for number, _ in tried), *rest]
    return replace(findings, directions=tuple(replace(findings.directions[number], candidates=every) for number in order), bytes_read=read)


class _Trial:
    """The rows of one pass: prompts as they are, and some of them again for every direction, ablated."""

    def __init__(self, session: StreamedSession, behaviour: Behaviour, sets: Sets, tried: Sequence[Direction]) -> None:
        self.session, self.tried, self.given = session, tried, behaviour.has_replies
        parts = {(split, name): part[name][: TOLD if split == "train" else TRIED] for split, part in (("train", sets.train), ("val", sets.val)) for name in ("shows", "lacks")}
        if self.given:
            parts = {key: prompts for key, prompts in parts.items() if key[0] == "val"}
        neutral = [replace(prompt, reply=None) for prompt in behaviour.set("neutral", "val", NEUTRAL) or sets.val["lacks"][:NEUTRAL]]
        self.parts: dict[tuple[str, str], list[Prompt]] = {**parts, ("val", "neutral"): neutral}
        again = [("val", "shows"), ("val", "neutral"), *([("val", "lacks")] if self.given else [])]
        self.rows: list[list[int]] = []
        self.replies: list[list[int]] = []
        self.owners: list[int] = []  # which direction a row is under, counted from 1; 0: none
        self.places: dict[tuple[int, str, str], list[int]] = {}
        for owner in range(len(tried) + 1):
            for key in self.parts if not owner else again:
                self.places[owner, *key] = [self._add(prompt, owner) for prompt in self.parts[key]]

    def _add(self, prompt: Prompt, owner: int) -> int:
        reply = self.session.encode_reply(prompt.reply) if self.given and prompt.reply is not None else []
        self.rows.append([*self.session.encode(prompt), *reply[:-1]])
        self.replies.append(reply)
        self.owners.append(owner)
        return len(self.rows) - 1

    def candidates(self, folder: Path, limit: int) -> list[Candidate] | None:
        """What each direction did; None where nothing tells."""
        controls = [None, *(ablate(direction) for direction in self.tried)]
        told = [__version__, self.session.told, self.rows, self.owners, [direction.basis.tolist() for direction in self.tried]]
        folder = of_key(folder, hashlib.sha256(repr(told).encode()).hexdigest())
        with ended(self.session, self.rows, [controls[owner] for owner in self.owners], folder) as end:
            self._refuse_left(end)
            base = self._first(end, 0, "val", "neutral").log_softmax(-1)
            read = _Given(self, end) if self.given else _FirstToken(self, end)
            if not read.tells:
                return None
            variation = float(-(base.exp() * base).nan_to_num(nan=0.0).sum(-1).mean())
            rules = Rules(limit, max(KL_MAX, variation), induces=False)
            return [self._candidate(end, read, number, base, rules) for number in range(len(self.tried))]

    def _refuse_left(self, end: Ended) -> None:
        """AccountingError where something of an ablated direction is in the stream behind the last block: the last step of the proof (`models/proven.py`)."""
        bound = max(1e-5, 16 * torch.finfo(self.session.shell.dtype).eps)
        for number, direction in enumerate(self.tried, start=1):
            stream = end.stream(self.places[number, "val", "shows"][0])
            left = float(((stream @ direction.basis[0]).abs() / stream.norm(dim=-1)).max())
            if left > bound:
                raise AccountingError(f"{self.session.name}: {left:.1e} of an ablated direction is left in the stream (at most {bound:.0e}); this model cannot be edited yet.")

    def _candidate(self, end: Ended, read: _FirstToken | _Given, number: int, base: Tensor, rules: Rules) -> Candidate:
        direction, strength = self.tried[number], read.strength(number + 1)
        changed = self._first(end, number + 1, "val", "neutral").log_softmax(-1)
        candidate = Candidate(
            site=direction.site, estimator=direction.estimator, bypass=strength.odds, induce=math.nan, kl=float(kl_divergence(base, changed).mean()),
            auroc=direction.auroc, separation=direction.separation, gap=abs(direction.gap), left=strength.share, n=len(self.parts["val", "shows"]),
        )  # fmt: skip
        return replace(candidate, discarded=why_not(candidate.row(), rules))

    def _first(self, end: Ended, owner: int, split: str, name: str) -> Tensor:
        """Logits of the first token of a reply: [prompt, vocab], float64."""
        return torch.stack([end.logits(row)[-1].double() for row in self.places[owner, split, name]])


class _FirstToken:
    """Log-odds of the tokens with which replies to `shows` begin and those to `lacks` do not."""

    def __init__(self, trial: _Trial, end: Ended) -> None:
        self.trial, self.end = trial, end
        shows, lacks = (trial._first(end, 0, "train", name).softmax(-1).mean(0) for name in ("shows", "lacks"))
        self.tokens = first_tokens_of(shows, lacks)
        self.tells = bool(self.tokens.any())
        if self.tells:
            odds = [log_odds(trial._first(end, 0, "val", name), self.tokens) for name in ("shows", "lacks")]
            self.tells = float(directions.auroc(*odds)) >= SEPARATES

    def strength(self, owner: int) -> Strength:
        odds = log_odds(self.trial._first(self.end, owner, "val", "shows"), self.tokens)
        return Strength(float(odds.mean()), float(odds.sigmoid().mean()))


class _Given:
    """How much likelier the given `shows` replies are than the `lacks` replies, nats per reply token, against the model as it is."""

    tells = True

    def __init__(self, trial: _Trial, end: Ended) -> None:
        self.trial, self.end = trial, end
        self.untouched = self._leaning(0)

    def _leaning(self, owner: int) -> float:
        means = []
        for name in ("shows", "lacks"):
            likelihoods = []
            for row in self.trial.places[owner, "val", name]:
                reply = self.trial.replies[row]
                log_probs = self.end.logits(row, len(reply)).double().log_softmax(-1)
                likelihoods.append(log_probs.gather(1, torch.tensor(reply)[:, None])[:, 0])
            means.append(float(torch.cat(likelihoods).mean()))
        return means[0] - means[1]

    def strength(self, owner: int) -> Strength:
        odds = self._leaning(owner) - self.untouched
        return Strength(odds, math.exp(min(0.0, odds)))
