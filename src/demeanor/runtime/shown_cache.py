"""Keys and values of a prefix that every row which follows it reads, and to which no pass adds."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer


class ShownLayer(DynamicLayer):
    """One layer's keys and values [kind, head, token, dim], each row reading those of its kind. They are put before a pass's own there and
    then, so that neither copies for every row nor what the pass adds are held beyond the layer."""

    def __init__(self, layer: DynamicLayer, kinds: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values, self.is_initialized = layer.keys, layer.values, True
        self.device = layer.device
        self.kinds = kinds

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """What the rows read: the prefix's, then their own."""
        return torch.cat([self._of_rows(self.keys), key_states], -2), torch.cat([self._of_rows(self.values), value_states], -2)

    def _of_rows(self, held: Tensor | None) -> Tensor:
        assert held is not None
        return held.expand(len(self.kinds), -1, -1, -1) if len(held) == 1 else held[self.kinds.to(held.device)]


def shown(cache: Any, kinds: Tensor) -> Any:
    """A cache of its own for rows of some kinds [row] that are read once; layers that keep more than keys and values are copied for each row."""
    own = copy.copy(cache)
    own.layers = []
    for layer in cache.layers:
        if type(layer) is DynamicLayer and layer.is_initialized:
            own.layers.append(ShownLayer(layer, kinds))
            continue
        own.layers.append(copy.deepcopy(layer))
        own.layers[-1].reorder_cache(kinds)
    return own
