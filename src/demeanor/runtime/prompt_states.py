"""Values added to the stream at the positions of single prompts: while they are searched for, and as part of a control.

What is added has the prompts' ends in common: values [row, width, d_model] stand for the last `width` tokens of each
prompt, and those of shorter prompts begin with zeros. They are added to the output of every block, in the pass that
reads the prompt; tokens that follow find them in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import ControlError
from ..structure.layout import Layout
from .acting import Acting, Pass
from .states import States

Values = Callable[[int], Tensor]  # layer -> [row, width, d_model]
NO_TOKEN = -1


def right_aligned(values: Sequence[Tensor], width: int) -> Tensor:
    """[layer, token, d_model] of several prompts as [layer, prompt, width, d_model], ends together, zeros before."""
    layers, _, d_model = values[0].shape
    aligned = values[0].new_zeros(layers, len(values), width, d_model)
    for number, states in enumerate(values):
        aligned[:, number, width - states.shape[1] :] = states
    return aligned


def added(x: Tensor, values: Tensor, ends: Tensor) -> Tensor:
    """x [row, token, d_model] plus values [row, width, d_model], the last of which stand at `ends` [row]."""
    rows, width, d_model = values.shape
    # Zeros stand for tokens before the first; wherever they are added, they change nothing.
    index = (ends.to(x.device)[:, None] - width + 1 + torch.arange(width, device=x.device)).clamp_min(0)
    return x.float().scatter_add(1, index[..., None].expand(rows, width, d_model), values.to(x.device).float()).to(x.dtype)


@contextmanager
def adding(
    model: nn.Module, layout: Layout, values: Values, ends: Tensor, watch: Callable[[int, Tensor], None] | None = None
) -> Iterator[None]:
    """Every pass of the caller's inside has `values` added at the prompts, whose last tokens stand at `ends` [row] of the batch.

    `watch` is given every block's output, with what was added.
    """
    with _Adding(model, layout, values, ends, watch).attached():
        yield


class _Adding(Acting):
    def __init__(self, model: nn.Module, layout: Layout, values: Values, ends: Tensor, watch: Callable[[int, Tensor], None] | None) -> None:
        super().__init__(model)
        self.layout, self.values, self.ends, self.watch = layout, values, ends, watch

    def lay(self) -> None:
        for layer, block in enumerate(self.layout.blocks):
            self.on_output(self.model.get_submodule(block), partial(self._change, layer))

    def _change(self, layer: int, x: Tensor) -> Tensor:
        x = added(x, self.values(layer), self.ends)
        if self.watch is not None:
            self.watch(layer, x)
        return x


class PromptStates(Acting):
    """The states of a control attached to a model: they act on the prompts they were made for, whole and alone.

    Which rows those are is told by their tokens, on the device, once per forward pass.
    """

    def __init__(self, model: nn.Module, layout: Layout, states: States) -> None:
        super().__init__(model)
        self.layout = layout
        device = next(model.parameters()).device
        width = max(map(len, states.ids), default=0)
        if any(len(values) != layout.n_layers or values.shape[2] != layout.d_model for values in states.values):
            raise ControlError("The states of a prompt do not have this model's layers and width; make them anew.")
        self.keys = torch.tensor([[NO_TOKEN] * (width - len(ids)) + list(ids) for ids in states.ids], device=device)  # [prompt, width]
        self.values = states.dose * right_aligned(states.values, width).to(device) if states.ids else None
        self._found: tuple[Tensor, Tensor, Tensor] | None = None  # of the pass in progress: prompt of each row, whether it has one, ends

    def lay(self) -> None:
        for layer, block in enumerate(self.layout.blocks if self.values is not None else ()):
            self.on_output(self.model.get_submodule(block), partial(self._change, layer))

    def begin(self, started: Pass) -> None:
        """Find the rows whose prompts have states."""
        self._found, ids = None, started.ids
        if ids is None or started.follows or self.values is None:
            return
        real = started.real
        replies = torch.zeros_like(ids[:, 0]) if self.reply_lengths is None else self.reply_lengths.to(ids.device)
        ends = ids.shape[1] - 1 - replies  # batches are padded on the left
        width = self.keys.shape[1]
        index = ends[:, None] - width + 1 + torch.arange(width, device=ids.device)
        before = index.clamp_min(0)
        told = torch.where((index >= 0) & real.gather(1, before), ids.gather(1, before), NO_TOKEN)
        first = real.long().argmax(1)
        whole = ends - first < width  # a longer prompt may end in the same tokens
        same = (told[:, None] == self.keys[None]).all(2) & whole[:, None]  # [row, prompt]
        self._found = same.long().argmax(1), same.any(1), ends

    def _change(self, layer: int, x: Tensor) -> Tensor | None:
        if self._found is None or self.values is None:
            return None
        prompt, has, ends = self._found
        return added(x, self.values[layer][prompt] * has[:, None, None], ends)
