"""Run-time edits in force: hooks that change module outputs, with masks that say which rows and tokens.

Masks are computed once per forward pass, in a hook on the decoder, from the attention mask; the hooks at
the edited modules only multiply and add, so nothing there waits for the device. A gate is decided when a
prompt is first seen (prefill), on the unedited model, and latched for the tokens that follow.
Pads are never edited.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ControlError
from ..structure.layout import Layout
from .bank import Bank, Mask, Stage
from .capture import HookSwitch, Reader
from .intervene import Intervention, Reach, RowGate, Side


class Steering:
    """Edits attached to one model. `decoder` is the model without its output head.

    `slots` are the interventions that rows can have, counted from 1 (0 is none); `rows` is the slot of every prompt, in
    the order in which prompts are given to the model, or None where all have slot 1.
    """

    def __init__(
        self, model: nn.Module, decoder: nn.Module, layout: Layout, slots: Sequence[Sequence[Intervention]], rows: Sequence[int] | None,
        switch: HookSwitch,
    ) -> None:  # fmt: skip
        self.model, self.decoder, self.layout, self.switch = model, decoder, layout, switch
        self.rows = None if rows is None else tuple(rows)
        self.batch: tuple[int, ...] | None = None  # which of the rows are in the batch in progress, where they are not all
        self.reply_lengths: Tensor | None = None  # [row], set while prompts are run together with their replies
        self.bank = Bank([[], *slots], {item.module: self._like(item.module) for slot in slots for item in slot})
        self._fired: dict[RowGate, Tensor] = {}  # [row, 1, 1], latched at prefill
        self._said = 0  # reply tokens up to the pass in progress, counted from the prompt's prefill

    def _like(self, name: str) -> Tensor:
        """A tensor where the module is, in its dtype."""
        return next(self.model.get_submodule(name).parameters(), next(self.model.parameters()))

    @contextmanager
    def attached(self) -> Iterator[Steering]:
        """Edits act inside this context and are gone after it."""
        with ExitStack() as stack:
            hook = self.decoder.register_forward_pre_hook(self._before_forward, with_kwargs=True)
            stack.callback(hook.remove)
            for (name, side), stages in self.bank.places.items():
                stack.callback(self._hook(self.model.get_submodule(name), side, stages).remove)
            yield self

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.switch.quiet:
            return
        given = kwargs.get("input_ids", args[0] if args else None)
        ids = given if given is not None else kwargs["inputs_embeds"][..., 0]
        self._bind(len(ids), ids.device)
        cache = kwargs.get("past_key_values")
        if cache is None or cache.get_seq_length() == 0:
            masks = self._prefill(args, kwargs, ids)
        else:
            masks = self._decode(kwargs.get("attention_mask"), ids)
        gated = {reach: _both(masks[reach], self._gates(reach.gates, len(ids))) for reach in masks}
        for pattern in self.bank.patterns:
            pattern.mask = pattern.combined(gated)

    def _bind(self, rows: int, device: torch.device) -> None:
        slots = (1,) if self.rows is None else self.rows
        if self.rows is not None and self.batch is not None:
            slots = tuple(self.rows[row] for row in self.batch)
        repeats, left = divmod(rows, len(slots))
        if left:
            raise ControlError(f"There are controls for {len(slots)} prompts, and a batch of {rows} rows; give one control per prompt.")
        self.bank.bind(slots, repeats, device)

    def _prefill(self, args: tuple[Any, ...], kwargs: dict[str, Any], ids: Tensor) -> dict[Reach, Mask]:
        """Masks of prompts, and of replies that are run together with them; gates are decided."""
        rows, length = ids.shape
        mask = kwargs.get("attention_mask")
        real = torch.ones(rows, length, dtype=torch.bool, device=ids.device) if mask is None else mask[:, -length:].bool()
        following = real.flip(1).cumsum(1).flip(1) - real.long()  # real tokens after each token
        reply = torch.zeros(rows, dtype=torch.long, device=ids.device) if self.reply_lengths is None else self.reply_lengths.to(ids.device)
        place, self._said = reply[:, None] - following, 0
        gates = self.bank.gates()
        if gates:
            ends = ((real & (place >= 0)).long().cumsum(1) == 0).sum(1)  # the first token not before it is the prompt's last
            self._decide(gates, args, kwargs, ends)
        return {
            reach: True if mask is None and reach.tokens == "all" else (real & reach.among(place))[..., None].float()
            for reach in self.bank.reaches()
        }

    def _decode(self, mask: Tensor | None, ids: Tensor) -> dict[Reach, Mask]:
        """Masks of reply tokens that follow a cache. Their places are known; a token that comes alone is no pad."""
        length = ids.shape[1]
        places = range(self._said + 1, self._said + length + 1)
        self._said += length
        made: dict[Reach, Mask] = {}
        for reach in self.bank.reaches():
            holds = [reach.holds(place) for place in places]
            made[reach] = holds[0] if len(set(holds)) == 1 else torch.tensor(holds, device=ids.device).float()[None, :, None]
            if length > 1 and mask is not None:
                made[reach] = _both(made[reach], mask[:, -length:, None].float())
        return made

    def _decide(self, gates: list[RowGate], args: tuple[Any, ...], kwargs: dict[str, Any], ends: Tensor) -> None:
        """Run the unedited model up to the last gate's layer and latch what every gate says."""
        quiet = {**kwargs, "past_key_values": None, "use_cache": False}
        reader = Reader(self.model, self.layout, [gate.site for gate in gates], self.switch)
        self.switch.quiet = True
        try:
            with torch.no_grad():
                values = reader.read(lambda: self.decoder(*args, **quiet), ends)
        finally:
            self.switch.quiet = False
        self._fired = {gate: gate.fires(values[:, number])[:, None, None].float() for number, gate in enumerate(gates)}

    def _gates(self, gates: Sequence[RowGate], rows: int) -> Mask:
        """The rows on which all of the gates fired."""
        mask: Mask = True
        for gate in gates:
            fired = self._fired[gate]
            mask = _both(mask, fired if len(fired) == rows else fired.repeat_interleave(rows // len(fired), 0))
        return mask

    def _hook(self, module: nn.Module, side: Side, stages: list[Stage]) -> Any:
        def change(x: Tensor) -> Tensor:
            if self.switch.quiet:
                return x
            for stage in stages:
                x = stage(x)
            return x

        if side == "output":

            def after(m: nn.Module, args: Any, out: Any) -> Any:
                return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

            return module.register_forward_hook(after)

        def before(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

        return module.register_forward_pre_hook(before, with_kwargs=True)


def _both(one: Mask, other: Mask) -> Mask:
    """Where both hold."""
    if one is False or other is False:
        return False
    if one is True:
        return other
    return one if other is True else one * other
