"""What acts in forward passes, and for whom.

Hooks lie on modules that all callers of a model share. So everything that hooks is `Acting`: it is put in force by a caller, and
its hooks act in that caller's passes alone. A caller is a context of `contextvars`: a thread, or an asyncio task. Whoever runs
a pass elsewhere has the model as it is.

`Pass` is what a pass reads as it begins; it alone tells prompts from tokens that follow a cache.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..structure.calls import Change, on_input, on_output
from .caches import cache_of


@dataclass(frozen=True)
class Pass:
    """A forward pass of a model without its head, as it begins: what it was called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    lengths: Tensor | None = None  # [row], of prompts that go on from a prefix in the cache and are padded on the right
    opening: int = 0  # tokens in the cache that prompts begin with

    @property
    def ids(self) -> Tensor | None:
        """Token ids [row, token]; None where embeddings were given."""
        ids: Tensor | None = self.kwargs.get("input_ids", self.args[0] if self.args else None)
        return ids

    @property
    def tokens(self) -> Tensor:
        """A tensor [row, token] on the pass's device: the ids, or as many numbers."""
        return self.kwargs["inputs_embeds"][..., 0] if self.ids is None else self.ids

    @property
    def follows(self) -> bool:
        """Whether its tokens follow a prompt in a cache; else it reads prompts."""
        if self.lengths is not None:
            return False
        cache = cache_of(self.kwargs)
        return cache is not None and cache.get_seq_length() > self.opening

    @property
    def padded(self) -> bool:
        """Whether it may hold pads."""
        return self.lengths is not None or self.kwargs.get("attention_mask") is not None

    @property
    def real(self) -> Tensor:
        """Which of its tokens are no pads, bool [row, token]."""
        if self.lengths is not None:
            return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths.to(self.tokens.device)[:, None]
        mask = self.kwargs.get("attention_mask")
        return torch.ones_like(self.tokens, dtype=torch.bool) if mask is None else mask[:, -self.tokens.shape[1] :].bool()


class Acting:
    """Hooks on one model that act in the passes of whoever put them in force.

    A subclass lays its hooks in `lay` and is told of every pass in `begin`. What it keeps of a pass is its own, and it is its
    caller's own: two callers never share one.
    """

    virtual_tokens = 0  # how many tokens it puts before every prompt
    controls: int | None = None  # for so many prompts it has one control each; None: for any number of them

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.decoder: Any = model.base_model  # the model without its head
        self.batch: tuple[int, ...] | None = None  # which of the prompts are in the batch in progress, where they are not all
        self.reply_lengths: Tensor | None = None  # [row], while prompts are run together with their replies
        self.suffixes: Tensor | None = None  # [row], how many tokens each row has after a prefix that all rows share
        self.opening = 0  # tokens of a prefix that all rows share and are continued from
        self._handles: list[RemovableHandle] = []
        self._told = False  # whether it acts in the pass in progress, for compiled code
        self._entered = False  # whether the pass in progress came through the model without its head
        self._shape: tuple[int, int] = (1, 1)  # rows and tokens of the pass in progress

    def lay(self) -> None:
        """Lay hooks with `on_input`, `on_output` and `hold`."""

    def begin(self, started: Pass) -> None:
        """A pass in which it acts begins."""

    def own_tokens(self) -> int | None:
        """How many of a prompt's last tokens must be run with its row, where those before them may be run once for all rows.

        None where it acts on whole prompts alone, or on each of them in another way.
        """
        return None

    def kinds(self) -> Sequence[int] | None:
        """A number per prompt, the same for prompts on which it acts alike; None where it does on all."""
        return None

    @contextmanager
    def attached(self) -> Iterator[Self]:
        """It acts in this context's passes inside, and is gone after it."""
        try:
            with lock_of(self.model):
                self._lay_beginning()
                self.lay()
            _IN_FORCE.set((*_IN_FORCE.get(), self))
            yield self
        finally:
            _IN_FORCE.set(tuple(other for other in _IN_FORCE.get() if other is not self))
            with lock_of(self.model):
                while self._handles:
                    self._handles.pop().remove()

    def _lay_beginning(self) -> None:
        """A pass begins where the model without its head is called or, in families whose head calls what lies inside that, there."""
        self.hold(self.decoder.register_forward_pre_hook(self._begin, with_kwargs=True))
        get_decoder = getattr(self.model, "get_decoder", None)
        inner = get_decoder() if callable(get_decoder) else None
        if not isinstance(inner, nn.Module) or inner is self.decoder or inner is self.model:
            return
        self._entered = False

        def entered(inside: bool) -> None:
            self._entered = inside

        self.hold(self.decoder.register_forward_pre_hook(lambda *_: entered(True)))
        self.hold(self.decoder.register_forward_hook(lambda *_: entered(False), always_call=True))
        self.hold(inner.register_forward_pre_hook(lambda *given: None if self._entered else self._begin(*given), with_kwargs=True))

    @property
    def laid(self) -> bool:
        """Whether its hooks lie on the model."""
        return bool(self._handles)

    @property
    def acts(self) -> bool:
        """Whether it is in force for whoever runs the pass in progress."""
        if torch.compiler.is_compiling():  # compiled code cannot look up its context; it is told as a pass begins
            return self._told
        return self in _IN_FORCE.get()

    def on_input(self, module: nn.Module, change: Change) -> None:
        """`change` what a module receives (see `structure.calls`), where this acts."""
        self.hold(on_input(module, self._here(change)))

    def on_output(self, module: nn.Module, change: Change) -> None:
        """`change` what a module returns (see `structure.calls`), where this acts."""
        self.hold(on_output(module, self._here(change)))

    def by_rows(self, value: Tensor) -> Tensor:
        """What a module returned as [row, token, ...]: some return the tokens of all rows in one axis."""
        rows, tokens = self._shape
        return value.reshape(rows, tokens, -1) if value.dim() == 2 and len(value) == rows * tokens else value

    def hold(self, handle: RemovableHandle) -> None:
        """A hook that goes when this does; it must ask `acts` itself."""
        self._handles.append(handle)

    def _here(self, change: Change) -> Change:
        return lambda value: change(value) if self.acts else None

    def passes(self, inputs: dict[str, Any]) -> None:
        """A pass with these inputs is in progress, of which the caller runs single blocks."""
        self._begin(self.decoder, (), inputs)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        self._told = self in _IN_FORCE.get()
        if self._told and kwargs is not None:  # None: another thread's, taken off while this pass was about to call it
            started = Pass(args, kwargs, self.suffixes, self.opening)
            rows, tokens = started.tokens.shape[:2]
            self._shape = rows, tokens
            self.begin(started)


_IN_FORCE: ContextVar[tuple[Acting, ...]] = ContextVar("in_force", default=())
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_LOCKING = threading.Lock()


def in_force(model: nn.Module) -> tuple[Acting, ...]:
    """What acts on a model in this context, in the order in which it was put in force."""
    # What another context has taken off is still listed in this one.
    return tuple(acting for acting in _IN_FORCE.get() if acting.model is model and acting.laid)


@contextmanager
def as_it_is(model: nn.Module) -> Iterator[None]:
    """The model without what is in force around this; what is put in force inside acts."""
    before = _IN_FORCE.get()
    _IN_FORCE.set(tuple(acting for acting in before if acting.model is not model))
    try:
        yield
    finally:
        _IN_FORCE.set(before)
        for acting in before:
            acting._told = True


def lock_of(model: nn.Module) -> threading.RLock:
    """One pass of a model at a time: some families keep what they know of a pass in the model."""
    with _LOCKING:
        return _LOCKS.setdefault(model, threading.RLock())
