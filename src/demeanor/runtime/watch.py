"""Watching what edits really do: every place of the stream, just before and just after the hooks that edit it.

Nothing here asks the steering what it means to do; values are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..structure.layout import Layout
from .capture import HookSwitch


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


@contextmanager
def watching(
    model: nn.Module, decoder: nn.Module, layout: Layout, switch: HookSwitch, steered: AbstractContextManager[Any]
) -> Iterator[Watched]:
    """`steered` in force, and everything it changes seen: hooks before its own see the raw values, hooks after it the edited ones."""
    seen = Watched()
    held: dict[tuple[str, str], Tensor] = {}
    places = {name for writer in layout.writers for name in (writer.module, writer.contribution)}

    def keep(key: tuple[str, str], value: Tensor) -> None:
        if not switch.quiet:
            held[key] = value.detach().clone()  # some families add to the stream in place after the hooks

    def compare(key: tuple[str, str], value: Tensor) -> None:
        if not switch.quiet and key in held:
            before = held.pop(key)
            seen.compare(key[0], before.expand_as(value), value)

    def hooks(stack: ExitStack, act: Any) -> None:
        for name in (*places, *layout.blocks):
            module = model.get_submodule(name)
            stack.callback(module.register_forward_hook(lambda m, a, out, name=name: act((name, "output"), _first(out))).remove)
            if name in layout.blocks:
                before = module.register_forward_pre_hook(
                    lambda m, args, kwargs, name=name: act((name, "input"), args[0] if args else kwargs["hidden_states"]), with_kwargs=True
                )
                stack.callback(before.remove)

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if switch.quiet:
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        assert isinstance(ids, Tensor)
        mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask[:, -ids.shape[1] :].bool()
        seen.begin(real, reply=cache is not None and cache.get_seq_length() > 0)

    with ExitStack() as stack:
        stack.callback(decoder.register_forward_pre_hook(begin, with_kwargs=True).remove)
        hooks(stack, keep)
        stack.enter_context(steered)
        hooks(stack, compare)
        yield seen
        seen.end()


def _first(out: Any) -> Tensor:
    value = out[0] if isinstance(out, tuple) else out
    assert isinstance(value, Tensor)
    return value
