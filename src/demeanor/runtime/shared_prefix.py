"""The tokens that all prompts of a call begin with, run once: their cache is shown to every batch of what follows them.

What follows and is read is padded on the right, so it needs no mask: a pad comes after every token that is read (algorithms.md, section 2).
Or several prompts share a row, which is for passes that look at every token: a mask shows each the prefix and itself.
Prompts that are continued end in one column, so their pads stand between the prefix and what follows it, and are masked.
Whether a model computes the same this way is tried on a few rows, and where it does not, prompts are run whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .acting import Acting, as_it_is
from .batches import Batch, left_pad
from .caches import keyword

FAR = 1 << 20  # tokens that are still to come before a reply, for what acts while the prefix is run
TRIED = 4  # rows on which a model is tried
TOLERANCE, ROUNDINGS = 1e-5, 16  # of a model's last states, relative: this, or so many roundings of its dtype
PACKED = 4  # how many of the longest prompts a row has room for, where several share one
WORTH, LEAST = 0.1, 128  # the least share of all tokens, and the least number, that is saved where a second pass is worth its calls
# What a model raises that takes no cache, or not this one.
UNABLE = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError)


BatchOf = Callable[..., Batch]  # rows of token ids, of which a cache holds the first ones


@dataclass(frozen=True)
class Tail:
    """What is wanted of a row: its last `read` tokens are read, its last `reply` tokens are reply."""

    read: int = 1
    reply: int = 0


@dataclass(frozen=True)
class Prefix:
    """A prefix that was run: its `cache` is not changed. Where what is in force differs by prompt it holds a row per kind, and `places` says
    which of them each prompt goes on from; else one row, for all."""

    cache: Any
    places: tuple[int, ...] | None = None

    def continued(self, rows: Sequence[int], device: torch.device) -> Any:
        """A cache of their own for some prompts, to which their tokens are added."""
        own = copy.deepcopy(self.cache)
        own.reorder_cache(self._places(rows, device))
        return own

    def read(self, rows: Sequence[int], device: torch.device) -> Any:
        """A cache for one pass over some prompts."""
        from .shown_cache import shown

        return shown(self.cache, self._places(rows, device))

    def _places(self, rows: Sequence[int], device: torch.device) -> Tensor:
        return torch.tensor([0 if self.places is None else self.places[row] for row in rows], device=device)


@dataclass(frozen=True)
class SharedBatch(Batch):
    """What follows the prefix, padded on the right."""

    prefix: Prefix

    @property
    def ends(self) -> Tensor:
        return self.attention_mask.sum(1)

    def inputs(self) -> dict[str, Any]:
        return {"input_ids": self.input_ids, keyword(): self.prefix.read(self.rows, self.input_ids.device), "use_cache": True}


@dataclass(frozen=True)
class PackedBatch(Batch):
    """What follows the prefix of `length` tokens, without pads as far as can be: several prompts in a row, each of which sees the prefix and itself.

    Its attention mask says of every token of a row which prompt it is of, from 1 on; 0 are pads. starts: row and column at which each prompt
    begins [prompt, 2]; lengths [prompt].
    """

    prefix: Prefix
    length: int
    starts: Tensor
    lengths: Tensor

    @property
    def of(self) -> Tensor:
        return self.attention_mask

    @property
    def ends(self) -> Tensor:
        return (self.attention_mask > 0).sum(1)

    @property
    def last(self) -> tuple[Tensor, Tensor]:
        return self.starts[:, 0], self.starts[:, 1] + self.lengths - 1

    def inputs(self) -> dict[str, Any]:
        of, device = self.attention_mask, self.input_ids.device
        columns = torch.arange(of.shape[1], device=device)
        sees = (of[:, :, None] == of[:, None]) & (columns[:, None] >= columns)
        sees = torch.cat([sees.new_ones(*of.shape, self.length), sees], 2)[:, None]
        dtype = _floats(self.prefix.cache)
        first = torch.zeros_like(of)
        first[self.starts[:, 0], self.starts[:, 1]] = self.starts[:, 1]
        return {
            "input_ids": self.input_ids, "position_ids": (self.length + columns - first.cummax(1).values).masked_fill(of == 0, 0),
            "attention_mask": torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill_(~sees, torch.finfo(dtype).min),
            keyword(): self.prefix.read(range(len(of)), device), "use_cache": True,
        }  # fmt: skip


@dataclass(frozen=True)
class OpenedBatch(Batch):
    """Prompts to be continued: the prefix, pads, and what follows it."""

    prefix: Prefix
    length: int

    def begun(self) -> Any:
        """The cache that the rows go on from, their own."""
        return self.prefix.continued(self.rows, self.input_ids.device)

    def inputs(self) -> dict[str, Any]:
        whole, rest = super().inputs(), slice(self.length, None)
        seen = {name: whole[name][:, rest] for name in ("input_ids", "position_ids")}  # the mask covers the cache too
        return {**whole, **seen, keyword(): self.begun(), "use_cache": True}

    @property
    def ends(self) -> Tensor:
        return super().ends - self.length


def shared_length(ids: Sequence[Sequence[int]], tails: Sequence[Tail], own: int) -> int:
    """How many tokens all rows have in common, as far as nothing of them is read.

    own: how many tokens before a reply must be run with it.
    """
    first, last = min(ids, key=list), max(ids, key=list)  # in the order of words, what these two share all rows share
    same = next((place for place, (one, other) in enumerate(zip(first, last)) if one != other), min(len(first), len(last)))
    length = min(same, *(len(row) - max(tail.read, tail.reply + own) for row, tail in zip(ids, tails, strict=True)))
    return max(0, length)


def is_worth_it(ids: Sequence[Sequence[int]], length: int, times: int = 1) -> bool:
    """Whether running the first `length` tokens of all rows once, or some `times`, saves enough."""
    saved = (len(ids) - times) * length
    return saved >= max(LEAST, WORTH * sum(map(len, ids)))


def prefix_cache(model: Any, prefix: Sequence[int], times: int = 1) -> Any:
    """The cache of a prefix [times, token], as whatever is in force makes it of each row."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model.base_model(input_ids=torch.tensor([list(prefix)] * times, device=model.device), use_cache=True, **{keyword(): cache})
    return cache


def _floats(cache: Any) -> torch.dtype:
    """The dtype of what a cache holds."""
    return next((layer.keys.dtype for layer in cache.layers if isinstance(getattr(layer, "keys", None), Tensor)), torch.float32)


def window(model: Any) -> int | None:
    """How many tokens apart the model's attention reaches in its layer of the least reach; None where it has no end.

    Pads count there, so those between a prefix and what follows it must not push the prefix out of reach.
    """
    config = model.config.get_text_config()
    reaches = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((reach for reach in reaches if isinstance(reach, int) and reach > 0), default=None)


def following(rows: Sequence[int], ids: Sequence[Sequence[int]], prefix: Prefix, length: int, pad: int, device: torch.device) -> SharedBatch:
    """The rows of `ids` from `length` on."""
    backwards, mask = left_pad([ids[row][length:][::-1] for row in rows], pad, device)
    return SharedBatch(tuple(rows), backwards.flip(1), mask.flip(1), prefix)


def packed(rows: Sequence[int], ids: Sequence[Sequence[int]], prefix: Prefix, length: int, pad: int, device: torch.device) -> PackedBatch:
    """The rows of `ids` from `length` on, the longest first, each in the first row of the batch that has room for it."""
    suffixes = [ids[row][length:] for row in rows]
    width = min(PACKED * max(map(len, suffixes)), sum(map(len, suffixes)))
    used, starts = list[int](), torch.zeros(len(rows), 2, dtype=torch.long)
    for number in sorted(range(len(rows)), key=lambda number: -len(suffixes[number])):
        row = next((row for row, taken in enumerate(used) if taken + len(suffixes[number]) <= width), len(used))
        used += [0] * (row == len(used))
        starts[number] = torch.tensor([row, used[row]])
        used[row] += len(suffixes[number])
    tokens, of = torch.full((len(used), width), pad), torch.zeros(len(used), width, dtype=torch.long)
    for number, (suffix, (row, start)) in enumerate(zip(suffixes, starts.tolist(), strict=True)):
        tokens[row, start : start + len(suffix)], of[row, start : start + len(suffix)] = torch.tensor(suffix), number + 1
    lengths = torch.tensor([len(suffix) for suffix in suffixes])
    return PackedBatch(tuple(rows), tokens.to(device), of.to(device), prefix, length, starts.to(device), lengths.to(device))


def opened(rows: Sequence[int], ids: Sequence[Sequence[int]], prefix: Prefix, length: int, pad: int, device: torch.device) -> OpenedBatch:
    """The rows of `ids`, to be continued from a prefix of `length` tokens."""
    rest, mask = left_pad([ids[row][length:] for row in rows], pad, device)
    start = torch.tensor([list(ids[rows[0]][:length])], device=device).expand(len(rows), -1)
    return OpenedBatch(tuple(rows), torch.cat([start, rest], 1), torch.cat([torch.ones_like(start), mask], 1), prefix, length)


def holds(model: Any, ids: Sequence[Sequence[int]], length: int, pad: int, batch_of: BatchOf = following) -> bool:
    """Whether the model as it is computes the same for a few rows, of several lengths, when their first tokens are run once."""
    rows = [list(ids[round(step * (len(ids) - 1) / (TRIED - 1))]) for step in range(TRIED)]
    rows = [row[: length + max(1, (len(row) - length) // (step + 1))] for step, row in enumerate(rows)]
    rows = rows * 2 if batch_of is packed else rows  # more than one row has room for, so that there are pads
    numbers = range(len(rows))
    whole = Batch(tuple(numbers), *left_pad(rows, pad, model.device))
    with as_it_is(model), torch.no_grad():
        try:
            plain = _ends(model, whole)
            shared = _ends(model, batch_of(numbers, rows, Prefix(prefix_cache(model, rows[0][:length])), length, pad, model.device))
        except UNABLE:  # memory that these rows do not fit into is among them
            return False
    off = (shared.float() - plain.float()).norm(dim=-1) / plain.float().norm(dim=-1)
    return bool(off.max() <= max(TOLERANCE, ROUNDINGS * torch.finfo(plain.dtype).eps))


def _ends(model: Any, batch: Batch) -> Tensor:
    """The last state of every row's last token: [row, d_model]."""
    states = model.base_model(**batch.inputs()).last_hidden_state
    rows, columns = batch.last
    return states[rows.to(states.device), columns.to(states.device)]  # type: ignore[no-any-return]


def last_logits(model: Any, batch: Batch, count: int) -> Tensor:
    """Logits at every row's last `count` tokens, the last of them in the last column: [row, count, vocab].

    Of a row with fewer tokens the first columns mean nothing.
    """
    if not isinstance(batch, SharedBatch):
        with InOnePiece(model).attached():
            return model(**batch.inputs(), logits_to_keep=count).logits  # type: ignore[no-any-return]
    with _LastTokens(model, batch.ends, count).attached() as last:
        logits: Tensor = model(**batch.inputs()).logits
    return logits if last.taken else last.take(logits)


class InOnePiece(Acting):
    """The output head is given its input in one piece of memory.

    The last tokens of several rows, cut out of all tokens, are not; in bfloat16 the product with the head then copies the head's weights
    once for every row, which took three quarters of a batch's time (SmolLM2, 64 rows, 8 tokens each).
    """

    def lay(self) -> None:
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        if head is not None:
            self.on_input(head, Tensor.contiguous)


class _LastTokens(Acting):
    """The output head is given the last tokens of each row alone, wherever they stand."""

    def __init__(self, model: Any, ends: Tensor, count: int) -> None:
        super().__init__(model)
        self.index = (ends[:, None] - count + torch.arange(count, device=ends.device)).clamp_min(0)
        self.taken = False

    def lay(self) -> None:
        self.on_input(self.model.get_output_embeddings(), self._at_head)  # type: ignore[operator]

    def _at_head(self, states: Tensor) -> Tensor:
        self.taken = True
        return self.take(states)

    def take(self, values: Tensor) -> Tensor:
        """[row, token, ...] at the last tokens: [row, count, ...]."""
        index = self.index.to(values.device)
        return values[torch.arange(len(index), device=values.device)[:, None], index]
