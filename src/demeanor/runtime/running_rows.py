"""Rows that are generated together although each comes and goes when it will, each under its own control.

A pass either reads the prompts of newcomers or adds one token to every row that runs. Rows stand in places; who leaves frees
a place, which the next newcomer takes. Whether a model computes the same this way is tried once (`mixes`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..structure.layout import Layout
from .acting import as_it_is
from .batches import Batch, left_pad
from .caches import keyword
from .prompt_states import PromptStates
from .shared_prefix import ROUNDINGS, TOLERANCE, UNABLE
from .slots import Seen, Slot, Slots, decide

if TYPE_CHECKING:
    from .growing_cache import GrowingCache


@dataclass(eq=False)
class Row:
    """A prompt by its token ids, and what acts on it; `fired` is what its gates said, once it was read."""

    ids: Sequence[int]
    slot: Slot | None = None
    seen: Seen | None = None  # where what really changes is counted
    fired: Mapping[Any, bool] = field(default_factory=dict)
    said: int = 0  # tokens of its reply that were read


class RunningRows:
    """The rows that run on one model. Whoever uses it holds the model's lock and runs all passes in one context."""

    def __init__(self, model: Any, layout: Layout, pad: int, mixes: bool = True) -> None:
        self.model, self.layout, self.pad, self.mixes = model, layout, pad, mixes
        self.places: list[Row | None] = []
        self._slots = Slots(model, layout)
        self._cache: Any = None
        self._mask = torch.empty(0)
        self._lengths = torch.empty(0)  # tokens in the cache, of every place

    @contextmanager
    def attached(self) -> Iterator[RunningRows]:
        """In force for the caller inside."""
        with as_it_is(self.model), self._slots.attached():
            yield self

    @property
    def running(self) -> list[Row]:
        return [row for row in self.places if row is not None]

    @torch.no_grad()
    def read(self, rows: Sequence[Row]) -> Tensor:
        """Newcomers' prompts: the logits of each one's first token [row, vocab], float32. Without `mixes`, one at a time and alone.

        Where it raises, the rows that run are as before.
        """
        if not self.mixes and (len(rows) > 1 or self.running):
            raise RuntimeError("This model runs one row at a time.")
        batch = Batch(tuple(range(len(rows))), *left_pad([row.ids for row in rows], self.pad, self.model.device))
        self._decide(rows, batch)
        logits, cache = self._read(rows, batch)
        self._join(rows, cache, batch)
        return logits

    @torch.no_grad()
    def step(self, tokens: Mapping[Row, int]) -> Tensor:
        """The next token's logits [row, vocab], float32, of the rows that are `running`, in their order, after one more token of each."""
        device = self.model.device
        ids = torch.tensor([[tokens[row] if row is not None else self.pad] for row in self.places], device=device)
        self._slots.bind(
            [row.slot if row else None for row in self.places], [row.said if row else 0 for row in self.places], self._watched(self.places)
        )
        more: dict[str, Any] = {}
        if self.mixes:
            self._mask[:, self._cache.stop : self._cache.stop + 1] = 1
            more = {"attention_mask": self._mask[:, self._cache.first : self._cache.stop + 1]}
        positions = self._lengths[:, None].to(device)
        inputs = {"input_ids": ids, "position_ids": positions, keyword(): self._cache, "use_cache": True, **more}
        logits: Tensor = self.model(**inputs).logits[:, -1].float()
        self._slots.count()
        self._lengths += 1
        for row in self.running:
            row.said += 1
        if self.mixes and self._cache.room == 0:
            self._rebuild(range(len(self.places)), self._longest())
        live = [place for place, row in enumerate(self.places) if row is not None]
        return logits if len(live) == len(logits) else logits[live]

    def leave(self, gone: Sequence[Row]) -> None:
        """These rows run no longer."""
        for place, row in enumerate(self.places):
            if row is not None and any(row is other for other in gone):
                self.places[place] = None
                if self.mixes:
                    self._mask[place], self._lengths[place] = 0, 0
        live = [place for place, row in enumerate(self.places) if row is not None]
        if not live:
            self.places, self._cache = [], None
        elif 2 * len(live) <= len(self.places):
            self._rebuild(live, self._longest())
        elif self.mixes:
            self._cache.begin(self._cache.stop - self._longest())

    def clear(self) -> None:
        """All rows leave."""
        self.leave(self.running)

    def _longest(self) -> int:
        return max(int(length) for length, row in zip(self._lengths.tolist(), self.places) if row is not None)

    def _watched(self, rows: Sequence[Row | None]) -> dict[int, Seen]:
        return {number: row.seen for number, row in enumerate(rows) if row is not None and row.seen is not None}

    def _decide(self, rows: Sequence[Row], batch: Batch) -> None:
        """Gates are decided once, at the prompt's end, on the model as it is."""
        gates = list(dict.fromkeys(gate for row in rows if row.slot is not None for gate in row.slot.gates))
        if not gates:
            return
        for row, said in zip(rows, decide(self.model, self.layout, gates, batch), strict=True):
            if row.slot is not None and row.slot.gates:
                row.fired = {gate: said[gate] for gate in row.slot.gates}
                row.slot = row.slot.decided(row.fired)

    def _read(self, rows: Sequence[Row], batch: Batch) -> tuple[Tensor, Any]:
        from transformers import DynamicCache

        cache = DynamicCache() if self.mixes else DynamicCache(config=self.model.config)
        self._slots.bind([row.slot for row in rows], None, self._watched(rows))
        with ExitStack() as stack:
            for states in (states for row in rows if row.slot is not None for states in row.slot.states):
                if len(rows) > 1:
                    raise RuntimeError("A row with states of single prompts is read alone.")
                stack.enter_context(PromptStates(self.model, self.layout, states).attached())
            inputs = {**batch.inputs(), keyword(): cache, "use_cache": True}
            logits = self.model(**inputs, logits_to_keep=1).logits[:, -1].float()
        self._slots.count()
        return logits, cache

    def _join(self, rows: Sequence[Row], cache: Any, batch: Batch) -> None:
        lengths = batch.attention_mask.sum(1).cpu()
        if not self.mixes:
            self.places, self._cache, self._lengths = list(rows), cache, lengths
            return
        if self._cache is None:
            self._found(rows, cache, batch, lengths)
            return
        free = [place for place, row in enumerate(self.places) if row is None]
        longest, width = max(self._longest(), int(lengths.max())), len(self.places) + max(0, len(rows) - len(free))
        if width > len(self.places) or longest > self._cache.stop:
            self._rebuild(list(range(len(self.places))), longest, width)
            free = [place for place, row in enumerate(self.places) if row is None]
        for number, (row, place) in enumerate(zip(rows, free)):
            length = int(lengths[number])
            self._cache.put(place, cache, number, length)
            self.places[place], self._lengths[place] = row, length
            self._mask[place, self._cache.stop - length : self._cache.stop] = 1
        self._cache.begin(self._cache.stop - self._longest())

    def _found(self, rows: Sequence[Row], cache: Any, batch: Batch, lengths: Tensor) -> None:
        """The first rows: their cache is filled from what their prompts left."""
        from .growing_cache import GrowingCache

        longest = int(lengths.max())
        grown: GrowingCache = GrowingCache(cache, len(rows), longest)
        for number, length in enumerate(lengths.tolist()):
            grown.put(number, cache, number, length)
        self._cache, self.places, self._lengths = grown, list(rows), lengths
        self._mask = torch.zeros(len(rows), longest + grown.room, dtype=torch.long, device=self.model.device)
        self._mask[:, :longest] = batch.attention_mask

    def _rebuild(self, kept: Sequence[int], length: int, width: int | None = None) -> None:
        """The cache anew, of some places and their last `length` columns, with `width` places."""
        if not self.mixes:
            return
        width, stop, first = max(width or 0, len(kept)), self._cache.stop, self._cache.first
        index = torch.tensor(kept, dtype=torch.long)
        self._cache.rebuild(index, length, width)
        used = self._mask[index.to(self._mask.device), max(first, stop - length) : stop]
        mask = used.new_zeros(width, length + self._cache.room)
        mask[: len(kept), length - used.shape[1] : length] = used
        lengths = self._lengths.new_zeros(width)
        lengths[: len(kept)] = self._lengths[index]
        self._mask, self._lengths = mask, lengths
        self.places = [*(self.places[place] for place in kept), *[None] * (width - len(kept))]


def mixes(model: Any, layout: Layout, ids: Sequence[Sequence[int]], pad: int) -> bool:
    """Whether the model as it is computes the same for prompts that join one after the other as for each alone.

    ids: at least two prompts of different lengths.
    """
    with RunningRows(model, layout, pad).attached() as together:
        rows = [Row(prompt) for prompt in ids]
        try:
            for number, row in enumerate(rows):
                together.read([row])
                said = together.step(dict.fromkeys(rows[: number + 1], int(ids[0][-1])))
        except UNABLE:
            return False
    for number, row in enumerate(rows):
        with RunningRows(model, layout, pad, mixes=False).attached() as alone:
            one = Row(row.ids)
            alone.read([one])
            for _ in range(row.said):
                (logits,) = alone.step({one: int(ids[0][-1])})
        off = float((said[number] - logits).norm() / logits.norm())
        if not off <= max(TOLERANCE, ROUNDINGS * torch.finfo(model.dtype).eps):
            return False
    return True
