"""The ledger of the untouched model: what it said, and how it was read. No prompt is asked twice.

Replies are kept by the prompt's tokens and serve every smaller budget; activations by tokens and site. Teacher-forced
log-probabilities of whole vocabularies are kept as long as they are few enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..behaviours import Prompt, as_prompt
from ..io.journal import Journal
from ..models import Activations, Reply, Session, Site
from ..runtime.positions import REPLY
from .condition import Condition

KEPT = 1 << 27  # log-probabilities held in all: whole vocabularies are large

Ids = tuple[int, ...]


def kept_replies(journal: Journal, condition: Condition, prompts: Sequence[Prompt], budget: int) -> list[Reply]:
    """Greedy replies under a condition; from the journal where the same prompts were asked together before."""
    if not journal.keeps or condition.digest is None:
        return condition.generate(prompts, budget)
    asked = [condition.session.encode(prompt) for prompt in prompts]
    rows = journal.recall(
        ("replies", condition.digest, asked, budget),
        lambda: [[reply.text, list(reply.ids)] for reply in condition.generate(prompts, budget)],
    )
    return [Reply(text, tuple(ids)) for text, ids in rows]


class Ledger:
    """What `session` does with nothing of ours in force. Ask it only there.

    `journal` keeps on disk what is said, here and by every bench that has this ledger.
    """

    def __init__(self, session: Session, journal: Journal | None = None) -> None:
        self.session = session
        self.journal = Journal() if journal is None else journal  # an empty one has no length
        self._replies: dict[Ids, tuple[int, Reply]] = {}  # with the budget they were given
        self._states: dict[Ids, dict[Site, Tensor]] = {}
        self._log_probs: dict[tuple[Ids, Ids], Tensor] = {}
        self._kept = 0
        self._likelihoods: dict[tuple[Ids, Ids], Tensor] = {}

    def replies(self, prompts: Sequence[Prompt], budget: int) -> list[Reply]:
        """Greedy replies of at most `budget` tokens, one per prompt."""
        keys = [tuple(self.session.encode(prompt)) for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts) if not self._covers(key, budget)}
        if missing:
            replies = kept_replies(self.journal, Condition(self.session), list(missing.values()), budget)
            self._replies |= {key: (budget, reply) for key, reply in zip(missing, replies, strict=True)}
        return [self._cut(self._replies[key][1], budget) for key in keys]

    def _covers(self, key: Ids, budget: int) -> bool:
        """Whether what is kept tells what a reply of that budget would be: it was longer, or it ended by itself."""
        if key not in self._replies:
            return False
        given, reply = self._replies[key]
        return budget <= given or len(reply.ids) < given

    def _cut(self, reply: Reply, budget: int) -> Reply:
        if len(reply.ids) <= budget:
            return reply
        before = reply.text.removesuffix(self.session.decode(reply.ids))  # a think tag that the template opened
        return Reply(before + self.session.decode(reply.ids[:budget]), reply.ids[:budget])

    def capture(self, prompts: Sequence[str | Prompt], sites: Sequence[Site], after: Sequence[int] = ()) -> Activations:
        """`Session.capture`, of sites that were not read before only."""
        over_reply = any(site.position == REPLY for site in sites)
        keys = [self._place(as_prompt(prompt), after, over_reply) for prompt in prompts]
        missing: dict[tuple[Site, ...], dict[Ids, str | Prompt]] = {}
        for key, prompt in zip(keys, prompts):
            unread = tuple(site for site in dict.fromkeys(sites) if site not in self._states.get(key, {}))
            if unread:
                missing.setdefault(unread, {})[key] = prompt
        for unread, rows in missing.items():
            values = self.session.capture(list(rows.values()), unread, after).values
            for key, row in zip(rows, values, strict=True):
                self._states.setdefault(key, {}).update(zip(unread, row))
        if not prompts:
            return self.session.capture(prompts, sites, after)  # says what is wrong
        return Activations(torch.stack([torch.stack([self._states[key][site] for site in sites]) for key in keys]), tuple(sites))

    def _place(self, prompt: Prompt, after: Sequence[int], over_reply: bool) -> Ids:
        """All tokens that are run, and where the reply among them begins."""
        start = (*self.session.encode(prompt), *after)
        if not over_reply or prompt.reply is None:
            return start
        return (*start, -len(start), *self.session.encode_reply(prompt.reply))

    def reply_log_probs(self, prompts: Sequence[Prompt], replies: Sequence[Sequence[int]]) -> list[Tensor]:
        """`Session.reply_log_probs`; what exceeds the room that there is for them is computed anew each time."""
        keys = [(tuple(self.session.encode(prompt)), tuple(reply)) for prompt, reply in zip(prompts, replies, strict=True)]
        missing = [number for number, key in enumerate(keys) if key not in self._log_probs]
        computed: dict[int, Tensor] = {}
        if missing:
            rows = self.session.reply_log_probs([prompts[number] for number in missing], [replies[number] for number in missing])
            computed = dict(zip(missing, rows, strict=True))
        for number, row in computed.items():
            if self._kept + row.numel() <= KEPT:
                self._log_probs[keys[number]] = row
                self._kept += row.numel()
        return [computed[number] if number in computed else self._log_probs[key] for number, key in enumerate(keys)]

    def reply_log_likelihoods(self, prompts: Sequence[Prompt], replies: Sequence[Sequence[int]]) -> list[Tensor]:
        """`Session.reply_log_likelihoods`, of replies that were not read before only."""
        keys = [(tuple(self.session.encode(prompt)), tuple(reply)) for prompt, reply in zip(prompts, replies, strict=True)]
        missing = {key: prompt for key, prompt in zip(keys, prompts) if key not in self._likelihoods}
        if missing:
            rows = self.session.reply_log_likelihoods(list(missing.values()), [reply for _, reply in missing])
            self._likelihoods |= dict(zip(missing, rows, strict=True))
        return [self._likelihoods[key] for key in keys]
