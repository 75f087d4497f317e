"""Run-time edits in force: hooks that change module outputs, with masks that say which rows and tokens.

Masks are computed once per forward pass, as it begins, from the attention mask; the hooks at
the edited modules only multiply and add, so nothing there waits for the device. A gate is decided when a
prompt is first seen (prefill), on the unedited model, and latched for the tokens that follow.
Pads are never edited.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import ControlError
from ..structure.calls import Change
from ..structure.layout import Layout
from .acting import Acting, Pass, as_it_is
from .bank import Bank, Mask, Stage
from .caches import without_cache
from .capture import Reader
from .intervene import Intervention, Reach, RowGate
from .positions import LAST, positions_of


class Steering(Acting):
    """Edits attached to one model.

    `slots` are the interventions that rows can have, counted from 1 (0 is none); `rows` is the slot of every prompt, in
    the order in which prompts are given to the model, or None where all have slot 1.
    """

    def __init__(
        self, model: nn.Module, layout: Layout, slots: Sequence[Sequence[Intervention]], rows: Sequence[int] | None = None
    ) -> None:
        super().__init__(model)
        self.layout = layout
        self.rows = None if rows is None else tuple(rows)
        self.controls = None if rows is None else len(rows)
        self.bank = Bank([[], *slots], {item.module: self._like(item.module) for slot in slots for item in slot})
        self._fired: dict[RowGate, Tensor] = {}  # [row, 1, 1], latched at prefill
        self._said = 0  # reply tokens up to the pass in progress, counted from the prompt's prefill

    def _like(self, name: str) -> Tensor:
        """A tensor where the module is, in its dtype."""
        return next(self.model.get_submodule(name).parameters(), next(self.model.parameters()))

    def own_tokens(self) -> int | None:
        reaches = [item.reach for slot in self.bank.slots for item in slot]
        if self.rows is not None or any(reach.gates for reach in reaches):
            return None
        return max([1, *(-position for reach in reaches for position in reach.positions)])

    def lay(self) -> None:
        for (name, side), stages in self.bank.places.items():
            (self.on_output if side == "output" else self.on_input)(self.model.get_submodule(name), self._through(stages))

    def _through(self, stages: Sequence[Stage]) -> Change:
        def change(value: Tensor) -> Tensor:
            x = self.by_rows(value)
            for stage in stages:
                x = stage(x)
            return x.reshape(value.shape) if x.numel() == value.numel() else x  # what is the same for all rows may differ from row to row now

        return change

    def begin(self, started: Pass) -> None:
        """Bind the batch's edits and make the masks of the pass."""
        rows, device = len(started.tokens), started.tokens.device
        self._bind(rows, device)
        masks = self._decode(started) if started.follows else self._prefill(started)
        gated = {reach: _both(masks[reach], self._gates(reach.gates, rows)) for reach in masks}
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

    def _prefill(self, started: Pass) -> dict[Reach, Mask]:
        """Masks of prompts, and of replies that are run together with them; gates are decided."""
        real, rows = started.real, len(started.tokens)
        lengths = torch.zeros(rows, dtype=torch.long) if self.reply_lengths is None else self.reply_lengths
        positions, self._said = positions_of(real, lengths.to(real.device)), 0
        gates = self.bank.gates()
        if gates:
            last = ((real & (positions >= LAST)).long().cumsum(1) == 0).sum(1)  # the first token that is not before it
            self._decide(gates, started, last + 1)
        return {
            reach: True if not started.padded and reach.tokens == "all" else (real & reach.among(positions))[..., None].float()
            for reach in self.bank.reaches()
        }

    def _decode(self, started: Pass) -> dict[Reach, Mask]:
        """Masks of reply tokens that follow a cache. Their positions are known; a token that comes alone is no pad."""
        length = started.tokens.shape[1]
        positions = range(self._said, self._said + length)
        self._said += length
        masks: dict[Reach, Mask] = {}
        for reach in self.bank.reaches():
            holds = [reach.holds(position) for position in positions]
            same = len(set(holds)) == 1
            masks[reach] = holds[0] if same else torch.tensor(holds, device=started.tokens.device).float()[None, :, None]
            if length > 1 and started.padded:
                masks[reach] = _both(masks[reach], started.real[..., None].float())
        return masks

    def _decide(self, gates: list[RowGate], started: Pass, begins: Tensor) -> None:
        """Run the unedited model up to the last gate's layer and latch what every gate says."""
        alone = without_cache(started.kwargs)
        reader = Reader(self.model, self.layout, [gate.site for gate in gates])
        with as_it_is(self.model), torch.no_grad():
            values = reader.read(lambda: self.decoder(*started.args, **alone), begins)
        self._fired = {gate: gate.fires(values[:, number])[:, None, None].float() for number, gate in enumerate(gates)}

    def _gates(self, gates: Sequence[RowGate], rows: int) -> Mask:
        """The rows on which all of the gates fired."""
        mask: Mask = True
        for gate in gates:
            fired = self._fired[gate]
            mask = _both(mask, fired if len(fired) == rows else fired.repeat_interleave(rows // len(fired), 0))
        return mask


def _both(one: Mask, other: Mask) -> Mask:
    """Where both hold."""
    if one is False or other is False:
        return False
    if one is True:
        return other
    return one if other is True else one * other
