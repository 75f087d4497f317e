"""K controls in a model whose passes hold tokens of many requests in one line [token, d_model], as engines have them.

Every place (the output of one module) has stages; stage n holds the n-th edit of every slot, stacked and padded with zeros: V and M [slot, k, d_model], b [slot, d_model].
Tokens without a control, and those that a control's scope leaves alone, are not touched at all: their values stay the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..algebra.edits import Edit
from ..controls import Control
from ..errors import ControlError
from ..runtime.intervene import Intervention, Reach
from ..structure.layout import Layout

Link = tuple[Reach, Edit]


@dataclass(frozen=True)
class Tokens:
    """Which control acts on each token of a pass: slot [token], the number of a control; position [token], counted from the end of its prompt (-1 its last token, 0 the first of the
    reply); index [token], where it stands in the line."""

    slot: Tensor
    position: Tensor
    index: Tensor


class Stage:
    """One edit per slot at one place."""

    def __init__(self, links: Sequence[Link | None]) -> None:
        edits = [link[1] if link else None for link in links]
        rank, d_model = max(edit.rank for edit in edits if edit), next(edit.d_model for edit in edits if edit)
        self.reaches = [link[0] if link else None for link in links]
        self.read, self.offset = torch.zeros(len(links), rank, d_model), torch.zeros(len(links), d_model)
        self.write = self.read.clone()
        for slot, edit in enumerate(edits):
            if edit is not None:
                self.read[slot, : edit.rank], self.write[slot, : edit.rank], self.offset[slot] = edit.V, edit.M, edit.b

    def to(self, device: torch.device) -> None:
        self.read, self.write, self.offset = (tensor.to(device) for tensor in (self.read, self.write, self.offset))

    def reached(self, tokens: Tokens) -> Tokens:
        """Those that the stage acts on."""
        kept = torch.zeros_like(tokens.slot, dtype=torch.bool)
        for slot, reach in enumerate(self.reaches):
            if reach is not None:
                kept |= (tokens.slot == slot) & reach.among(tokens.position)
        return Tokens(tokens.slot[kept], tokens.position[kept], tokens.index[kept])

    def delta(self, x: Tensor, slot: Tensor) -> Tensor:
        """What is added to x [token, d_model], float32. Sums of products of each token alone, so that it does not matter, to the last bit, which others there are."""
        components = (self.read[slot] * x.float()[:, None]).sum(-1)  # [token, k]
        return (self.write[slot] * components[:, :, None]).sum(1) + self.offset[slot]


class Slots:
    """Several controls laid into a model, and which of them acts on each token of the pass that comes next."""

    def __init__(self, controls: Sequence[Control], layout: Layout) -> None:
        self.places: dict[str, list[Stage]] = {}
        self.blocks = set(layout.blocks)
        chains = [_chains(control, layout) for control in controls]
        for place in dict.fromkeys(place for chain in chains for place in chain):
            longest = max(len(chain.get(place, [])) for chain in chains)
            links = [[chain.get(place, [])[number] if number < len(chain.get(place, [])) else None for chain in chains] for number in range(longest)]
            self.places[place] = [Stage(stage) for stage in links]
        self._tokens: Tokens | None = None
        self._reached: dict[tuple[Reach | None, ...], Tokens] = {}

    def lay(self, model: nn.Module) -> None:
        """Hook every place, for good. ControlError where the model has no module of that name."""
        device = next(model.parameters()).device
        modules = dict(model.named_modules())
        for place, stages in self.places.items():
            if place not in modules:
                raise ControlError(f"The engine's model ({type(model).__name__}) has no {place}, where a control acts; bake the control, and serve that.")
            for stage in stages:
                stage.to(device)
            modules[place].register_forward_hook(self._hook(place))

    def take(self, tokens: Tokens | None) -> None:
        """Which tokens the next pass holds that a control acts on; None for none."""
        self._tokens, self._reached = tokens, {}

    def _hook(self, place: str) -> Callable[..., Any]:
        stages, block = self.places[place], place in self.blocks

        def edited(module: nn.Module, args: Any, output: Any) -> Any:
            if self._tokens is None:
                return None
            first, others = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
            # Blocks of vLLM hand on what their last part said and the stream before it, whose sum is the stream.
            beside = others[0] if block and others and isinstance(others[0], Tensor) and others[0].shape == first.shape else None
            flat = first.reshape(-1, first.shape[-1]).clone()
            for stage in stages:
                self._apply(stage, flat, beside)
            out = flat.view(first.shape)
            return out if others is None else (out, *others)

        return edited

    def _apply(self, stage: Stage, flat: Tensor, beside: Tensor | None) -> None:
        tokens = self._chosen(stage)
        if len(tokens.index) == 0:
            return
        own = flat[tokens.index]
        x = own if beside is None else own + beside.reshape(flat.shape)[tokens.index]
        flat[tokens.index] = (own.float() + stage.delta(x, tokens.slot)).to(flat.dtype)

    def _chosen(self, stage: Stage) -> Tokens:
        """The tokens that a stage acts on, looked for once a pass for all stages with the same reaches."""
        assert self._tokens is not None
        key = tuple(stage.reaches)
        if key not in self._reached:
            self._reached[key] = stage.reached(self._tokens)
        return self._reached[key]


def _chains(control: Control, layout: Layout) -> dict[str, list[Link]]:
    """What a control does at the output of every module, in order: at run time a block's output is edited before the next one's input is."""
    chains: dict[str, list[Link]] = {}
    for item in sorted(control.interventions(layout, _no_parameters), key=lambda item: item.side != "output"):
        for place in _outputs(item, layout):
            chains.setdefault(place, []).append((item.reach, item.edit))
    return chains


def _outputs(item: Intervention, layout: Layout) -> Iterator[str]:
    """Modules to whose output an edit goes: what comes into a block is what the one before it handed on."""
    if item.side == "output":
        yield item.module
        return
    layer = layout.blocks.index(item.module)
    if layer == 0:
        raise ControlError("Engines hand no place before layer 0 to a control; use a direction of resid_post.")
    yield layout.blocks[layer - 1]


def _no_parameters(name: str) -> Tensor:
    """Parameters are read for norms behind writers, which are refused, and for where tensors are to lie."""
    return torch.zeros(1)


def tokens_of(requests: Sequence[tuple[int | None, int, int, int]], device: torch.device) -> Tokens | None:
    """The tokens of a pass that a control acts on, of its requests in order: (slot or None, first token's number in the request, tokens in this pass, tokens of its prompt)."""
    slots: list[Tensor] = []
    positions: list[Tensor] = []
    indices: list[Tensor] = []
    start = 0
    for slot, first, count, prompt in requests:
        if slot is not None:
            slots.append(torch.full((count,), slot))
            positions.append(torch.arange(first - prompt, first - prompt + count))
            indices.append(torch.arange(start, start + count))
        start += count
    if not slots:
        return None
    return Tokens(*(torch.cat(parts).to(device) for parts in (slots, positions, indices)))


def slots_by_name(named: Mapping[str, Control]) -> tuple[Slots, dict[str, int]]:
    """Controls of one structure in slots, and the slot of each name."""
    layout = next(iter(named.values())).layout
    return Slots(list(named.values()), layout), {name: number for number, name in enumerate(named)}
