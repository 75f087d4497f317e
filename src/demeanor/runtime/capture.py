"""Reading the residual stream at the end of prompts: no output head, only the wanted positions and layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..structure.layout import Layout
from .acting import Acting
from .positions import REPLY, Position
from .sites import Site, taps

FOREVER = 1 << 40  # after every token


@dataclass(frozen=True)
class Activations:
    """values [prompt, site, d_model], float32, on the CPU."""

    values: Tensor
    sites: tuple[Site, ...]

    def at(self, site: Site) -> Tensor:
        """[prompt, d_model] at one site."""
        return self.values[:, self.sites.index(site)]


class _Enough(Exception):
    """The last wanted layer has run."""


class Reader(Acting):
    """Hooks that keep the values of `sites` at prompt ends during one forward pass after another."""

    def __init__(self, model: nn.Module, layout: Layout, sites: Sequence[Site]) -> None:
        super().__init__(model)
        self.layout, self.sites = layout, tuple(sites)
        self._kept: dict[Site, Tensor] = {}
        self._begins = self._ends = torch.empty(0)

    def read(self, forward: Callable[[], Any], begins: Tensor, ends: Tensor | None = None) -> Tensor:
        """values [row, site, d_model]; `begins` [row] are the indices in the batch at which replies begin, or would.

        What follows them up to `ends` [row] is the reply; all that follows, where batches are padded on the left.
        """
        self._kept, self._begins, self._ends = {}, begins, torch.full_like(begins, FOREVER) if ends is None else ends
        with self.attached(), suppress(_Enough):
            forward()
        return torch.stack([self._kept[site] for site in self.sites], 1)

    def lay(self) -> None:
        for site in dict.fromkeys(self.sites):
            for tap in taps(self.layout, site):
                lay = self.on_output if tap.side == "output" else self.on_input
                lay(self.model.get_submodule(tap.module), partial(self._keep, site, tap.scale))
        last = max(site.layer for site in self.sites)
        self.on_output(self.model.get_submodule(self.layout.blocks[last]), self._stop)

    def _keep(self, site: Site, scale: float, value: Tensor) -> None:
        begins = self._begins.to(value.device)
        value = one_stream(self.by_rows(value), len(begins), self.layout.d_model)
        read = taken(value, begins, self._ends.to(value.device), site.position).to(self._begins.device) * scale
        self._kept[site] = self._kept[site] + read if site in self._kept else read

    def _stop(self, value: Tensor) -> None:
        raise _Enough


def taken(value: Tensor, begins: Tensor, ends: Tensor, position: Position) -> Tensor:
    """The stream [row, token, d_model] at one position of every row, or its mean over the reply: [row, d_model], float32.

    begins, ends [row]: the tokens at which replies begin and end, or would.
    """
    if position == REPLY:
        place = torch.arange(value.shape[1], device=value.device)
        said = ((place >= begins[:, None]) & (place < ends[:, None])).float()
        return torch.einsum("rt,rtd->rd", said / said.sum(1, keepdim=True), value.float())
    # Indexing copies: some families add to the stream in place after the hook.
    return value[torch.arange(len(value), device=value.device), begins + position].float()


def one_stream(value: Tensor, rows: int, d_model: int) -> Tensor:
    """What passes between blocks, by rows, as [row, token, d_model]: of several copies of the stream their mean."""
    if value.dim() > 3 or value.shape[-1] != d_model:
        value = value.reshape(*value.shape[:2], -1, d_model).mean(2)
    return value.expand(rows, -1, -1)
