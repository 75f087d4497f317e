"""Watching what edits really do: every place of the stream, just before and just after the hooks that edit it.

Nothing here asks the steering what it means to do; values are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..structure.layout import Layout
from .acting import Acting, Pass


@dataclass
class Tally:
    """How many of these were seen, and how many of them changed anywhere."""

    edited: int = 0
    seen: int = 0

    def count(self, changed: Tensor, counted: Tensor) -> None:
        """Those that are counted [..], and of them those that changed."""
        self.edited += int((changed & counted).sum())
        self.seen += int(counted.sum())

    def __str__(self) -> str:
        return f"{self.edited} of {self.seen}"


@dataclass
class Watched:
    """What was seen: rows, tokens of prompts and of replies, and pads; `places` are the modules at which anything changed."""

    rows: Tally = field(default_factory=Tally)
    prompt_tokens: Tally = field(default_factory=Tally)
    reply_tokens: Tally = field(default_factory=Tally)
    pads: Tally = field(default_factory=Tally)
    places: set[str] = field(default_factory=set)
    _real: Tensor | None = None
    _changed: Tensor | None = None
    _rows: Tensor | None = None
    _reply: bool = False

    def begin(self, real: Tensor, reply: bool) -> None:
        """A forward pass over real [row, token]: a prompt, or the reply that follows the one before."""
        self._count_tokens()
        if not reply:
            self._count_rows()
            self._rows = torch.zeros_like(real[:, 0])
        self._real, self._changed, self._reply = real, torch.zeros_like(real), reply

    def compare(self, name: str, before: Tensor, after: Tensor) -> None:
        """One place in the pass in progress: [row, token, d_model]."""
        if self._changed is None:
            return
        differs = ((before != after) & ~(before.isnan() & after.isnan())).any(-1)
        if bool(differs.any()):
            self.places.add(name)
            self._changed = self._changed | differs

    def end(self) -> None:
        """Count what is still open."""
        self._count_tokens()
        self._count_rows()

    def _count_tokens(self) -> None:
        if self._real is None or self._changed is None or self._rows is None:
            return
        (self.reply_tokens if self._reply else self.prompt_tokens).count(self._changed, self._real)
        self.pads.count(self._changed, ~self._real)
        self._rows |= (self._changed & self._real).any(1)
        self._real = self._changed = None

    def _count_rows(self) -> None:
        if self._rows is not None:
            self.rows.count(self._rows, torch.ones_like(self._rows))
        self._rows = None


class _Watching(Acting):
    """Hooks on every place, before and after those of what is watched."""

    def __init__(self, model: nn.Module, layout: Layout, seen: Watched) -> None:
        super().__init__(model)
        self.layout, self.seen = layout, seen
        self._before: dict[tuple[str, str], Tensor] = {}

    def lay(self) -> None:
        self._lay(self._keep)

    def lay_after(self) -> None:
        """The second half, once what is watched is in force."""
        self._lay(self._compare)

    def begin(self, started: Pass) -> None:
        self.seen.begin(started.real, reply=started.follows)

    def _lay(self, act: Callable[[str, str, Tensor], None]) -> None:
        writers = {name for writer in self.layout.writers for name in (writer.module, writer.contribution)}
        for name in (*writers, *self.layout.blocks):
            module = self.model.get_submodule(name)
            self.on_output(module, partial(act, name, "output"))
            if name in self.layout.blocks:
                self.on_input(module, partial(act, name, "input"))

    def _keep(self, name: str, side: str, value: Tensor) -> None:
        self._before[name, side] = value.detach().clone()  # some families add to the stream in place after the hooks

    def _compare(self, name: str, side: str, value: Tensor) -> None:
        before = self._before.pop((name, side), None)
        if before is not None:
            self.seen.compare(name, before.expand_as(value), value)


@contextmanager
def watching(model: nn.Module, layout: Layout, steered: AbstractContextManager[Any]) -> Iterator[Watched]:
    """`steered` in force, and everything it changes seen: hooks before its own see the raw values, hooks after it the edited ones."""
    seen = Watched()
    watcher = _Watching(model, layout, seen)
    with watcher.attached(), steered:
        watcher.lay_after()
        yield seen
        seen.end()
