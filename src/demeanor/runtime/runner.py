"""Running batches through one model, for callers in any number of threads."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import DataError
from .acting import Acting, in_force, lock_of
from .batches import TOKEN_BUDGET, Batch, EvenBatch, in_batches, left_pad
from .shared_prefix import (
    FAR,
    BatchOf,
    OpenedBatch,
    Prefix,
    SharedBatch,
    Tail,
    following,
    holds,
    is_worth_it,
    opened,
    packed,
    prefix_cache,
    shared_length,
    window,
)

T = TypeVar("T")
SMALL = 20_000_000  # parameters


class Runner:
    """Batches of token ids through a model, under whatever is in force for the caller; one batch at a time.

    pad: the token that fills rows up. refuse_too_long: raises an error for token ids that the model does not take, and longest tells
    how many it takes, where there is an end. small: whether its many calls are what it costs, and not its size.
    """

    def __init__(self, model: Any, pad: int, refuse_too_long: Callable[[Sequence[int]], None], longest: Callable[[], int | None]) -> None:
        self.model, self.pad, self._refuse_too_long, self._longest = model, pad, refuse_too_long, longest
        self.even = False
        self.prefixes: Counter[str] = Counter()  # how many calls ran a shared prefix once, and why others did not
        # Whether that is the same as running prompts whole, by the prefix's length in bits and how rows follow it.
        self._holds: dict[tuple[int, BatchOf], bool] = {}
        self.small = sum(parameter.numel() for parameter in model.parameters()) < SMALL

    @property
    def branch_budget(self) -> int:
        """Padded tokens in one batch of branches. A small model's cost is its many calls, and most branches end early."""
        return TOKEN_BUDGET * (4 if self.small else 1)

    def in_batches(
        self, ids: Sequence[Sequence[int]], run: Callable[[Batch], Sequence[T]], what: str, extra: int = 0, budget: int = TOKEN_BUDGET,
        reply: int | None = None, tails: Sequence[Tail] | None = None, continued: bool = False,
    ) -> list[T]:
        """`run` on batches of token ids; its results, one per row, in order. See `batches.in_batches`.

        tails: what is wanted of each row, where no more of it is than its end; then what all rows begin with may be run once.
        continued: whether rows are continued, so that they must end in one column.
        reply: how many tokens may follow a row, where those are not what is counted as `extra`.
        Rows are opened with as many pads as embeddings are put before prompts. DataError where a control for each of
        another number of prompts is in force.
        """
        acting = in_force(self.model)
        wrong = next((acting_here.controls for acting_here in acting if acting_here.controls not in (None, len(ids))), None)
        if wrong is not None:
            raise DataError(f"There are {wrong} controls and {len(ids)} prompts; give one control per prompt.")
        opening = [self.pad] * sum(acting_here.virtual_tokens for acting_here in acting)
        if opening and ids:
            ids = [[*opening, *row] for row in ids]
            self._refuse_too_long(max(ids, key=len))
        longest = self._longest()
        if longest is not None and max(map(len, ids), default=0) > longest:  # replies that are read with their prompts
            self._refuse_too_long(max(ids, key=len))

        def with_rows(batch: Batch) -> Sequence[T]:
            with lock_of(self.model):
                for acting_here in acting:
                    acting_here.batch, acting_here.suffixes = batch.rows, batch.ends if isinstance(batch, SharedBatch) else None
                    acting_here.opening = batch.length if isinstance(batch, OpenedBatch) else 0
                try:
                    return run(batch)
                finally:
                    for acting_here in acting:
                        acting_here.batch, acting_here.suffixes, acting_here.opening = None, None, 0

        with self.threads():
            alike = None if longest is None else longest + extra - (extra if reply is None else reply)
            batch_of: Callable[[Sequence[int]], Batch] | None = None
            if self.even:
                alike = -1  # no length stands with another
                batch_of = lambda rows: EvenBatch(tuple(rows), *left_pad([ids[row] for row in rows], self.pad, self.model.device))  # noqa: E731
            elif tails and len(ids) > 1:
                batch_of = self.after_prefix(ids, tails, opened if continued else following, extra if continued else 0)
            return in_batches(ids, self.pad, self.model.device, with_rows, what, extra, budget, alike, batch_of)

    def after_prefix(
        self, ids: Sequence[Sequence[int]], tails: Sequence[Tail], batch_of: BatchOf = following, more: int = 0
    ) -> Callable[[Sequence[int]], Batch] | None:
        """Runs what all rows begin with, and makes batches of what follows; None where rows are to be run whole.

        batch_of: how they follow. more: how many tokens rows are continued by.
        """
        acting = in_force(self.model)
        reach = window(self.model)
        if batch_of is not following and reach is not None and max(map(len, ids)) + more > reach:
            self.prefixes["attention does not reach so far"] += 1
            return None
        own = [acting_here.own_tokens() for acting_here in acting]
        if None in own:
            self.prefixes["what is in force takes whole prompts"] += 1
            return None
        places, first = _kinds(acting, len(ids))
        length = shared_length(ids, tails, max([1, *(tokens for tokens in own if tokens is not None)]))
        if batch_of is packed and len(first) > 1:
            self.prefixes["prompts of several kinds share no row"] += 1
            return None
        if not is_worth_it(ids, length, len(first)):
            self.prefixes["too little is shared"] += 1
            return None
        with lock_of(self.model):
            way = length.bit_length(), batch_of
            if way not in self._holds:
                self._holds[way] = holds(self.model, ids, length, self.pad, batch_of)
            if not self._holds[way]:
                self.prefixes["the model computes something else"] += 1
                return None
            with self.replying(torch.tensor([-FAR] * len(first))), _batch_of(acting, first):  # the prompts' ends are far from what they share
                prefix = Prefix(prefix_cache(self.model, ids[0][:length], len(first)), places if len(first) > 1 else None)
        self.prefixes["shared"] += 1
        return lambda rows: batch_of(rows, ids, prefix, length, self.pad, self.model.device)

    def room(self, batch: Batch, wanted: int) -> int:
        """How many of the `wanted` tokens can follow the rows of a batch before the model's last position."""
        longest = self._longest()
        return wanted if longest is None else max(1, min(wanted, longest - batch.input_ids.shape[1]))

    @contextmanager
    def replying(self, lengths: Tensor) -> Iterator[None]:
        """Tells what is in force how many of each row's last tokens are reply, for the passes inside."""
        acting = in_force(self.model)
        for acting_here in acting:
            acting_here.reply_lengths = lengths
        try:
            yield
        finally:
            for acting_here in acting:
                acting_here.reply_lengths = None

    def threads(self) -> AbstractContextManager[None]:
        """One thread of torch's for small models: handing their tiny operations to several costs more than it saves, and
        many times more on a machine that is busy with something else."""
        return one_thread() if self.small else nullcontext()


def _kinds(acting: Sequence[Acting], count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which kind each of `count` prompts is of, where what acts on them differs, and the first prompt of every kind."""
    apart = [kinds for acting_here in acting if (kinds := acting_here.kinds()) is not None]
    numbers: dict[tuple[int, ...], int] = {}
    places = tuple(numbers.setdefault(tuple(kinds[row] for kinds in apart), len(numbers)) for row in range(count))
    return places, tuple(places.index(number) for number in range(len(numbers)))


@contextmanager
def _batch_of(acting: Sequence[Acting], rows: tuple[int, ...]) -> Iterator[None]:
    """The pass inside is of these prompts."""
    for acting_here in acting:
        acting_here.batch = rows
    try:
        yield
    finally:
        for acting_here in acting:
            acting_here.batch = None


_COUNTING = threading.Lock()
_inside: dict[int, int] = {}  # how many times each thread has come and not gone
_usual = 1  # torch's number of threads before the first of them came


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes in one thread inside; the last to leave leaves its number of threads as the first has found it.

    The number is the process's and the calling thread's at once, so whoever comes in between cannot tell the usual one.
    """
    global _usual
    own = threading.get_ident()
    with _COUNTING:
        if not _inside:
            _usual = torch.get_num_threads()
        _inside[own] = _inside.get(own, 0) + 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _COUNTING:
            _inside[own] -= 1
            if not _inside[own]:
                del _inside[own]
                torch.set_num_threads(_usual)
