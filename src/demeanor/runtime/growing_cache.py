"""A cache of keys and values whose rows come and go, and which grows in place.

All rows end in one column, as in a batch that is padded on the left; what stands before a row's first token is masked. A row that
leaves frees its place for another, and nothing is copied but when there is no room left.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

SPARE = 64  # columns that are made at a time


class GrowingLayer(DynamicLayer):
    """Keys and values [row, head, column, dim] of one layer, in buffers with spare columns; `first` to `stop` are in use."""

    dtype: torch.dtype
    device: torch.device

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)  # type: ignore[no-untyped-call]
        self.buffers: list[Tensor] = []
        self.first = self.stop = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add a token to every row; there must be room for it."""
        count = key_states.shape[-2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.stop : self.stop + count] = states
        self.stop += count
        return self._show()

    def rebuild(self, rows: Tensor | None, length: int, width: int | None = None) -> None:
        """Buffers anew: of these rows (None: all), of their last `length` columns, with places for `width` rows."""
        made = []
        for buffer in self.buffers:
            used = buffer[:, :, max(self.first, self.stop - length) : self.stop]
            used = used if rows is None else used[rows.to(used.device)]
            new = used.new_zeros(max(width or 0, len(used)), used.shape[1], length + SPARE, used.shape[3])
            new[: len(used), :, length - used.shape[2] : length] = used
            made.append(new)
        self.buffers, self.first, self.stop = made, 0, length
        self._show()

    def put(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Into one row: keys and values [head, token, dim], which end where all rows end."""
        for buffer, states in zip(self.buffers, (keys, values), strict=True):
            buffer[row, :, self.stop - states.shape[1] : self.stop] = states

    def begin(self, first: int) -> None:
        """What stands before this column is no longer read."""
        self.first = first
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = (buffer[:, :, self.first : self.stop] for buffer in self.buffers)
        self.keys, self.values, self.is_initialized = keys, values, True
        return keys, values


class GrowingCache(Cache):
    """The layers of a model's cache, made of what a pass over prompts left in another cache."""

    def __init__(self, read: Cache, rows: int, length: int) -> None:
        layers: list[Any] = []
        for layer in read.layers:
            if type(layer) is not DynamicLayer or layer.keys is None or layer.values is None or layer.keys.shape[-2] != length:
                raise TypeError(f"A layer keeps its state as {type(layer).__name__}, which rows cannot join and leave.")
            own = GrowingLayer()
            own.dtype, own.device = layer.keys.dtype, layer.keys.device
            shapes = ((*layer.keys.shape[:2], 0, layer.keys.shape[3]), (*layer.values.shape[:2], 0, layer.values.shape[3]))
            own.buffers = [torch.empty(shape, dtype=own.dtype, device=own.device) for shape in shapes]
            own.rebuild(None, length, width=rows)
            layers.append(own)
        super().__init__(layers=layers)

    @property
    def _growing(self) -> list[Any]:
        return self.layers

    @property
    def first(self) -> int:
        return int(self._growing[0].first)

    @property
    def stop(self) -> int:
        return int(self._growing[0].stop)

    @property
    def room(self) -> int:
        """Columns that can be added before the buffers are made anew."""
        return int(self._growing[0].buffers[0].shape[-2]) - self.stop

    def rebuild(self, rows: Tensor | None, length: int, width: int | None = None) -> None:
        for layer in self._growing:
            layer.rebuild(rows, length, width=width)

    def put(self, row: int, read: Any, number: int, tokens: int) -> None:
        """Into a row: the last `tokens` tokens of a row of another cache."""
        for layer, other in zip(self._growing, read.layers, strict=True):
            layer.put(row, other.keys[number, :, -tokens:], other.values[number, :, -tokens:])

    def begin(self, first: int) -> None:
        for layer in self._growing:
            layer.begin(first)
