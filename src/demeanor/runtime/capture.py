"""Reading the residual stream at the end of prompts: no output head, only the wanted positions and layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import DataError, ModelError, mistaken
from ..structure.layout import Layout, contributions
from .acting import Acting
from .positions import LAST, REPLY, Position

Point = Literal["embed", "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
POINTS: tuple[str, ...] = get_args(Point)
FOREVER = 1 << 40  # after every token


@dataclass(frozen=True, order=True)
class Site:
    """Where the stream is read or edited. `position` counts from the end of what is read, a prompt and what it is forced through:
    -1 is the last token. "reply" (REPLY) is the mean over the tokens of the reply that comes with it."""

    layer: int
    point: Point = "resid_post"
    position: Position = LAST

    def __post_init__(self) -> None:
        if self.position != REPLY and not isinstance(self.position, int):
            raise DataError(f'{self.position!r} is no position; count from the prompt\'s end (-1 is its last token), or use "reply".')

    def __str__(self) -> str:
        return f"layer {self.layer} {self.point} {'over the reply' if self.position == REPLY else f'at {self.position}'}"


def as_sites(sites: Iterable[Site]) -> list[Site]:
    """Several sites. Raises DataError for a single one, and for what is no site."""
    if isinstance(sites, (str, Site)) or not isinstance(sites, Iterable):
        raise DataError(mistaken("A list of sites", sites, "put a single site in a list, as in [Site(3)]"))
    sites = list(sites)
    for other in sites:
        if not isinstance(other, Site):
            raise DataError(mistaken("A site", other, "make one with Site(layer)"))
    return sites


@dataclass(frozen=True)
class Activations:
    """values [prompt, site, d_model], float32, on the CPU."""

    values: Tensor
    sites: tuple[Site, ...]

    def at(self, site: Site) -> Tensor:
        """[prompt, d_model] at one site."""
        return self.values[:, self.sites.index(site)]


@dataclass(frozen=True)
class Tap:
    """One side of one module; a site's value is the sum of its taps, each times its scale."""

    module: str
    side: Literal["input", "output"]
    scale: float = 1.0


def taps(layout: Layout, site: Site) -> list[Tap]:
    """Where a site is found in this model, or a ModelError when this model has no such place."""
    if not 0 <= site.layer < layout.n_layers:
        raise ModelError(f"The model has layers 0 to {layout.n_layers - 1}; there is no layer {site.layer}.")
    block = layout.blocks[site.layer]
    if site.point == "resid_post":
        return [Tap(block, "output")]
    if site.point == "resid_pre":
        return [Tap(block, "input")]
    if site.point == "embed":
        return [Tap(w.contribution, "output", w.scale) for w in contributions(w for w in layout.writers if w.role == "embed")]
    if site.point not in ("attn_out", "resid_mid", "mlp_out"):
        raise ModelError(f"{site.point!r} is not a point of the stream; use one of {', '.join(get_args(Point))}.")
    alpha = layout.alpha(site.layer)
    if alpha is None:
        raise ModelError(
            f"The parts of layer {site.layer} of this model are mixed token by token before they come into its stream, so it has no {site.point}; use resid_pre or resid_post."
        )
    writers = layout.writers_of(site.layer, "mlp" if site.point == "mlp_out" else "attn")
    if not writers:
        raise ModelError(f"There is no {site.point} in layer {site.layer} of this model; use resid_pre or resid_post.")
    parts = [Tap(writer.contribution, "output", writer.scale) for writer in contributions(writers)]
    return [Tap(block, "input", alpha), *parts] if site.point == "resid_mid" else parts


def spread(n_layers: int, count: int) -> list[int]:
    """At most `count` layers, the first and the last among them, spread evenly."""
    count = min(count, n_layers)
    return [round(step * (n_layers - 1) / max(1, count - 1)) for step in range(count)]


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
