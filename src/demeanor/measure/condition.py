"""Who is measured: a model, with a control in force, always or on second thoughts, or a system prompt put before every
conversation, or neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from torch import Tensor

from ..behaviours import Prompt
from ..controls import Control, digest
from ..detect import Detector, present
from ..models import Reply, Session
from ..runtime.control_like import as_control

T = TypeVar("T")


@dataclass(frozen=True)
class Condition:
    """A session, what acts on it, and a text that opens every system prompt (plain prompting, to compare controls with).

    With `redo` the control is in force only where the reply without it shows the behaviour: such a reply is done again.
    """

    session: Session
    control: Control | None = None
    prompting: str | None = None
    redo: Detector | None = None

    def __post_init__(self) -> None:
        if self.control is not None:
            as_control(self.control)

    @property
    def untouched(self) -> bool:
        return self.control is None and self.prompting is None

    @cached_property
    def digest(self) -> str | None:
        """Which model, and what acts on it, told from all others; None where that cannot be told (a detector decides)."""
        if self.redo is not None:
            return None
        return f"{self.session.name}, {'untouched' if self.control is None else digest(self.control)}, {self.prompting!r}"

    def asked(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts as this condition gets them."""
        if self.prompting is None:
            return list(prompts)
        texts = [self.prompting if prompt.system is None else f"{self.prompting}\n\n{prompt.system}" for prompt in prompts]
        return [replace(prompt, system=text) for prompt, text in zip(prompts, texts)]

    @contextmanager
    def acting(self) -> Iterator[Session]:
        """The session with the control in force."""
        with self.session.controlled(self.control) if self.control is not None else nullcontext():
            yield self.session

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Reply]:
        if self.redo is None:
            with self.acting() as session:
                return session.generate(self.asked(prompts), max_new_tokens)
        first = replace(self, control=None, redo=None).generate(prompts, max_new_tokens)
        again = self._again([reply.text for reply in first], prompts)
        return _filled(first, again, lambda rows: replace(self, redo=None).generate([prompts[row] for row in rows], max_new_tokens))

    def reply_log_probs(self, prompts: Sequence[Prompt], replies: Sequence[Sequence[int]]) -> list[Tensor]:
        """Of replies without the control: where `redo` would do one again, as the control sees it."""
        if self.redo is None:
            with self.acting() as session:
                return session.reply_log_probs(self.asked(prompts), replies)
        again = self._again([self.session.decode(reply) for reply in replies], prompts)
        plain, held = replace(self, control=None, redo=None), replace(self, redo=None)
        return _filled(
            plain.reply_log_probs(prompts, replies),
            again,
            lambda rows: held.reply_log_probs([prompts[r] for r in rows], [replies[r] for r in rows]),
        )

    def text_log_probs(self, starts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[Tensor]:
        """Of plain text, which nobody says: where replies would be done again, there is none, and nothing acts."""
        if self.redo is not None:
            return self.session.text_log_probs(starts, continuations)
        with self.acting() as session:
            return session.text_log_probs(starts, continuations)

    def _again(self, texts: Sequence[str], prompts: Sequence[Prompt]) -> list[int]:
        assert self.redo is not None
        return [row for row, shown in enumerate(present(self.redo, texts, prompts)) if shown]


def _filled(first: Sequence[T], rows: Sequence[int], make: Callable[[Sequence[int]], Sequence[T]]) -> list[T]:
    """`first`, with some rows made anew."""
    filled = list(first)
    for row, value in zip(rows, make(rows) if rows else [], strict=True):
        filled[row] = value
    return filled
