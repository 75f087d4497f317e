"""Reading the residual stream at the end of prompts: no output head, only the wanted positions and layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import DataError, ModelError, mistaken
from ..structure.layout import Layout

Point = Literal["embed", "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
REPLY = 0


@dataclass(frozen=True, order=True)
class Site:
    """Where the stream is read or edited. `position` counts from the end of the prompt: -1 is its last token, and
    REPLY (0) stands for the mean over the tokens of the reply that comes with it."""

    layer: int
    point: Point = "resid_post"
    position: int = -1

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
        return [Tap(w.module, "output", w.scale) for w in layout.writers if w.role == "embed"]
    if site.point not in ("attn_out", "resid_mid", "mlp_out"):
        raise ModelError(f"{site.point!r} is not a point of the stream; use one of {', '.join(get_args(Point))}.")
    writer = layout.writer(site.layer, "mlp" if site.point == "mlp_out" else "attn")
    if writer is None:
        raise ModelError(f"There is no {site.point} in layer {site.layer} of this model; use resid_pre or resid_post.")
    contribution = Tap(writer.contribution, "output", writer.scale)
    return [Tap(block, "input"), contribution] if site.point == "resid_mid" else [contribution]


class HookSwitch:
    """Whose hooks act in the forward pass in progress: shared by everything attached to one model.

    `reader` is the innermost reader at work; `quiet` is true while the unedited model is read for a gate.
    """

    def __init__(self) -> None:
        self.reader: Reader | None = None
        self.quiet = False


def prompts_read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Token ids and which of them are no pads [row, token], of a pass of the decoder that reads prompts; None for the tokens
    that follow a cache, and where there are no ids."""
    ids, cache, mask = kwargs.get("input_ids", args[0] if args else None), kwargs.get("past_key_values"), kwargs.get("attention_mask")
    if ids is None or (cache is not None and cache.get_seq_length() > 0):
        return None
    return ids, torch.ones_like(ids, dtype=torch.bool) if mask is None else mask[:, -ids.shape[1] :].bool()


def spread(n_layers: int, count: int) -> list[int]:
    """At most `count` layers, the first and the last among them, spread evenly."""
    count = min(count, n_layers)
    return [round(step * (n_layers - 1) / max(1, count - 1)) for step in range(count)]


class _Enough(Exception):
    """The last wanted layer has run."""


class Reader:
    """Hooks that keep the values of `sites` at prompt ends during one forward pass after another."""

    def __init__(self, model: nn.Module, layout: Layout, sites: Sequence[Site], switch: HookSwitch) -> None:
        self.model, self.layout, self.sites, self.switch = model, layout, tuple(sites), switch

    def read(self, forward: Callable[[], Any], ends: Tensor) -> Tensor:
        """values [row, site, d_model]; `ends` [row] are the indices of the prompts' last tokens in the batch.

        Whatever follows them is the reply: batches are padded on the left.
        """
        rows = torch.arange(len(ends), device=ends.device)
        kept: dict[Site, Tensor] = {}
        last = max(site.layer for site in self.sites)
        handles = [handle for site in dict.fromkeys(self.sites) for handle in self._watch(site, kept, rows, ends)]
        handles.append(self.model.get_submodule(self.layout.blocks[last]).register_forward_hook(self._stop))
        outer, self.switch.reader = self.switch.reader, self
        try:
            forward()
        except _Enough:
            pass
        finally:
            self.switch.reader = outer
            for handle in handles:
                handle.remove()
        return torch.stack([kept[site] for site in self.sites], 1)

    def _watch(self, site: Site, kept: dict[Site, Tensor], rows: Tensor, ends: Tensor) -> Iterator[RemovableHandle]:
        def keep(value: Tensor, scale: float) -> None:
            if self.switch.reader is not self:  # a gate is read inside the pass that this reader watches
                return
            value = value.expand(len(rows), -1, -1)
            if site.position == REPLY:
                said = (torch.arange(value.shape[1], device=ends.device) > ends[:, None]).float()
                taken = torch.einsum("rt,rtd->rd", said / said.sum(1, keepdim=True), value.float()) * scale
            else:
                # Indexing copies: some families add to the stream in place after the hook.
                taken = value[rows, ends + 1 + site.position].float() * scale
            kept[site] = kept[site] + taken if site in kept else taken

        for tap in taps(self.layout, site):
            module = self.model.get_submodule(tap.module)
            if tap.side == "input":
                yield module.register_forward_pre_hook(
                    lambda m, args, kwargs, tap=tap: keep(args[0] if args else kwargs["hidden_states"], tap.scale), with_kwargs=True
                )
            else:
                yield module.register_forward_hook(lambda m, args, out, tap=tap: keep(out[0] if isinstance(out, tuple) else out, tap.scale))

    def _stop(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.switch.reader is self:
            raise _Enough
