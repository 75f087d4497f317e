"""What a control does, told without whole replies: several controls as rows of one batch, and every prompt by itself.

A surrogate says three things of a prompt: how likely the reply shows the behaviour, how likely it is no use, and how far the control moves
what the untouched model says. `ShortReplies` has the detector judge beginnings of replies (decision 37). The token that opens a reply does not do: random
settings of the embedded model's search were ranked by it with a correlation of .3 with whole replies, and by beginnings with one of .99. algorithms.md, section 10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..algebra.divergence import kl_divergence
from ..behaviours import Prompt, SetName
from ..controls import Control
from ..detect import likely
from ..finding.find import Findings
from ..finding.gauges import TOKENS, Tried
from ..finding.gauges import ShortReplies as Beginnings
from ..measure.bench import Bench
from ..measure.engaged import says_something, stock, usual_share
from ..measure.observation import ordinary_set
from ..models import Reply, Session
from ..models.row_values import RowValue

PROMPTS = 32  # of shows and of guard, at most; half as many ordinary ones, which tell more each. The front is run on all
LARGE = 24  # the same, of a model whose every row costs
TOLD: tuple[SetName, ...] = ("shows", "guard")


@dataclass(frozen=True)
class Prompts:
    """The val prompts that trials are tried on: those on which the untouched model does what their set says."""

    shows: list[Prompt]
    guard: list[Prompt]
    ordinary: list[Prompt]
    ordinary_set: SetName

    def of(self, name: SetName) -> list[Prompt]:
        return self.shows if name == "shows" else self.guard if name == "guard" else self.ordinary

    def __len__(self) -> int:
        return max(len(self.shows), len(self.guard), len(self.ordinary))


@dataclass(frozen=True)
class Read:
    """What one control does to some prompts, a number each: the probability that the reply shows the behaviour (`shows`, `guard`), that
    the reply to a `shows` prompt is no use, showing it included (`left`), and nats per token on ordinary prompts (`drift`)."""

    shows: Tensor
    left: Tensor
    guard: Tensor
    drift: Tensor

    def where(self, fires: Read, untouched: Read) -> Read:
        """This where a gate fires (a one) and the untouched model elsewhere (a zero)."""
        pairs = {name: (getattr(self, name), getattr(untouched, name), getattr(fires, name)) for name in vars(self)}
        return Read(**{name: torch.where(fired > 0, mine, other) for name, (mine, other, fired) in pairs.items()})

    def then(self, other: Read) -> Read:
        """The same of more prompts."""
        return Read(**{name: torch.cat([getattr(self, name), getattr(other, name)]) for name in vars(self)})

    def part(self, first: int, last: int) -> Read:
        return Read(**{name: getattr(self, name)[first:last] for name in vars(self)})


def surrogate_for(bench: Bench, findings: Findings) -> ShortReplies:
    """Beginnings of replies to val prompts on which the model does what their set says, and to ordinary ones."""
    small = bench.session.runner.small
    most = PROMPTS if small else LARGE
    known = {name: set(findings.sets.val.get(name, ())) for name in TOLD}
    shows, guard = ([prompt for prompt in bench.prompts[name] if prompt in known[name]][:most] for name in TOLD)
    ordinary = ordinary_set(bench.prompts)
    prompts = Prompts(shows, guard, bench.prompts[ordinary][: most // 2], ordinary)
    return ShortReplies(bench, prompts)


class ShortReplies:
    """Beginnings of replies, as short as tell, and the detector; a reply without words is no use, nor one that says what others do that are read with it (before any gate). And how far the untouched model's own
    replies to ordinary prompts are moved, over their first tokens."""

    def __init__(self, bench: Bench, prompts: Prompts) -> None:
        self.session, self.prompts, self.detector = bench.session, prompts, bench.detector
        replies: Sequence[Reply] = bench.ledger.replies(prompts.ordinary, bench.budget) if prompts.ordinary else []
        self.said = [reply.ids[:TOKENS] or (self.session.pad_id,) for reply in replies]
        base = bench.ledger.reply_log_probs(prompts.ordinary, self.said) if replies else []
        self.moved = Divergence([rows.double() for rows in base])
        self.starts = [self.session.encode(prompt) for prompt in prompts.ordinary]
        self.length = Beginnings(bench, Tried(prompts.shows, [], prompts.ordinary)).length
        self.usual = usual_share(prompts.ordinary, [self.session.decode(reply.ids[: self.length]) for reply in replies])

    def read(self, controls: Sequence[Control | None], first: int, last: int) -> list[Read]:
        """What every control does to prompts number `first` to `last` of each set."""
        asked = {name: self.prompts.of(name)[first:last] for name in TOLD}
        told = [prompt for name in TOLD for prompt in asked[name]]
        shown, useless = [], []
        if told:
            with rows_under(self.session, [control for control in controls for _ in told]):
                texts = [reply.text for reply in self.session.generate(told * len(controls), self.length)]
            shown = likely(self.detector, texts, told * len(controls))
            useless = [no for start in range(0, len(texts), len(told)) for no in self._useless(asked["shows"], texts[start : start + len(told)])]
        moved = self._moved(controls, first, last)
        return [
            self._read(asked, shown[place * len(told) :], useless[place * len(told) :], drift) for place, drift in enumerate(moved)
        ]

    def _useless(self, shows: Sequence[Prompt], texts: Sequence[str]) -> list[bool]:
        """Which beginnings, those of `shows` first, say nothing; of `shows` also those that say what the others read with them say."""
        same = stock(shows, texts[: len(shows)], self.usual) + [False] * (len(texts) - len(shows))
        return [alike or not says_something(text) for alike, text in zip(same, texts, strict=True)]

    def _read(self, asked: Mapping[SetName, Sequence[Prompt]], shown: Sequence[float], useless: Sequence[bool], drift: Tensor) -> Read:
        count = len(asked["shows"])
        shows, guard = (torch.tensor(some, dtype=torch.float64) for some in (shown[:count], shown[count : count + len(asked["guard"])]))
        left = torch.maximum(shows, torch.tensor(useless[:count], dtype=torch.float64))
        return Read(shows=shows, left=left, guard=guard, drift=drift)

    def _moved(self, controls: Sequence[Control | None], first: int, last: int) -> list[Tensor]:
        numbers = range(first, min(last, len(self.said)))
        if not numbers:
            return [torch.zeros(0, dtype=torch.float64) for _ in controls]
        repeated = list(numbers) * len(controls)
        with rows_under(self.session, [control for control in controls for _ in numbers]):
            starts, said = [self.starts[number] for number in repeated], [self.said[number] for number in repeated]
            values = self.session.teacher_forced(starts, said, self.moved, repeated)
        rows = torch.cat(values).double()
        return list(rows.reshape(len(controls), len(numbers)))


@dataclass(frozen=True, eq=False)
class Divergence(RowValue):
    """KL(untouched || controlled) per token of reply number `number`, from log-probabilities [token, vocab]: [1]. base: the untouched model's."""

    base: Sequence[Tensor]

    def __call__(self, number: int, log_probs: Tensor) -> Tensor:
        return kl_divergence(self.base[number].to(log_probs.device), log_probs.double()).mean()[None]


def rows_under(session: Session, controls: Sequence[Control | None]) -> AbstractContextManager[Any]:
    """The session with a control for each row; one control alone may be of any kind."""
    distinct = {id(control): control for control in controls}
    if len(distinct) > 1:
        return session.controlled_rows(controls)
    only = next(iter(distinct.values()))
    return nullcontext() if only is None else session.controlled(only)
