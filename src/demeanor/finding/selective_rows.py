"""What selective edits are fitted on: train prompts in one batch, some to be changed where they end, the others to stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..behaviours import Behaviour, Prompt, SetName, asked
from ..detect import make_detector, present
from ..errors import DataError
from ..measure.bench import reply_budget
from ..measure.ledger import Ledger
from ..models import Session
from ..runtime.acting import Acting
from ..runtime.batches import Batch, left_pad
from ..runtime.shared_prefix import Tail, packed
from ..structure.calls import is_linear, received, returned
from ..structure.layout import Writer

KEPT: tuple[SetName, ...] = ("guard", "lacks", "neutral")
FEWEST = 8  # train prompts of `shows` on which the model shows the behaviour


@dataclass(frozen=True)
class Rows:
    """All prompts in one batch, several in a row where that can be: the first `acting` are to change, at their last tokens; the others stay,
    at every token.

    replied: how many tokens of a reply follow each prompt that stays. opening: what each writer reads, and makes of it, where all rows
    begin alike, (inputs [token, in], outputs [token, out]) by module of the model as it is; empty where rows are run whole. Those tokens
    stay too, so the edits before a writer hardly reach what it reads of them.
    """

    batch: Batch
    acting: int
    replied: Sequence[int]
    opening: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def kept(self) -> Tensor:
        """Which tokens of the batch stay [row, token]."""
        return self.batch.of > self.acting

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Row and column at which each prompt ends that is to change."""
        rows, columns = self.batch.last
        return rows[: self.acting].cpu(), columns[: self.acting].cpu()  # which index tensors on any device

    @property
    def last(self) -> tuple[Tensor, Tensor]:
        """Row and column at which each prompt ends that stays."""
        rows, columns = self.batch.last
        return rows[self.acting :].cpu(), columns[self.acting :].cpu() - torch.tensor(self.replied)


def train_prompts(behaviour: Behaviour, name: SetName, most: int, heard: int | None = None) -> list[Prompt]:
    """The first of a set; of a fair sample of so many where only these were `heard` by whoever asks."""
    return asked(behaviour.set(name, "train", heard))[:most]


def rows_of(session: Session, behaviour: Behaviour, ledger: Ledger, prompts: int, heard: int | None = None) -> Rows:
    budget = reply_budget(session, behaviour)
    shows = train_prompts(behaviour, "shows", prompts, heard)
    texts = [reply.text for reply in ledger.replies(shows, budget)] if shows else []
    shown = sum(present(make_detector(behaviour.detect, session), texts, shows))
    if shown < FEWEST:
        raise DataError(f"{session.name} shows the behaviour on {shown} train prompts of shows; at least {FEWEST} are needed, so give it more.")
    acting = [session.encode(prompt) for prompt in shows]
    staying = [prompt for name in KEPT for prompt in train_prompts(behaviour, name, prompts, heard)]
    if not staying:
        raise DataError("Nothing says what is to stay as it is; give the behaviour a guard set, or lacks prompts.")
    replies = [reply.ids for reply in ledger.replies(staying, budget)]
    ids = [*acting, *([*session.encode(prompt), *reply] for prompt, reply in zip(staying, replies, strict=True))]
    replied = [len(reply) for reply in replies]
    return _together(session, ids, len(acting), replied)


def _together(session: Session, ids: Sequence[Sequence[int]], acting: int, replied: Sequence[int]) -> Rows:
    """All rows in one batch, of what follows the tokens that all begin with where the model takes that."""
    tails = [Tail()] * acting + [Tail(read=reply + 1) for reply in replied]
    runner = session.runner
    with runner.threads(), session.uncontrolled(), _Opening(session).attached() as opening:
        batch_of = runner.after_prefix(ids, tails, packed) or runner.after_prefix(ids, tails)
    if batch_of is not None:
        return Rows(batch_of(range(len(ids))), acting, replied, opening.seen)
    return Rows(Batch(tuple(range(len(ids))), *left_pad(ids, runner.pad, session.device)), acting, replied, {})


class _Opening(Acting):
    """Keeps what the writers read and make of a single row that is run."""

    def __init__(self, session: Session) -> None:
        super().__init__(session.model)
        self.writers = linear_writers(session)
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}

    def lay(self) -> None:
        for writer in self.writers:
            self.hold(self.model.get_submodule(writer.module).register_forward_hook(self._keep(writer.module)))

    def own_tokens(self) -> int:
        return 0

    def _keep(self, module: str) -> Any:
        def keep(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            y = returned(output)
            if self.acts and isinstance(y, Tensor):
                self.seen[module] = received(args, {})[0], y[0]

        return keep


def linear_writers(session: Session) -> list[Writer]:
    """The writers of blocks that are a weight times what they read."""
    return [writer for writer in session.layout.writers if writer.layer >= 0 and is_linear(session.model.get_submodule(writer.module))]
