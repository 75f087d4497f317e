"""What acts on rows that come and go: every row has a slot (a control whose gates were decided) and its own place in its reply.

`Steering` and its masks know one batch from its prompts to its last token. Here a pass is either prompts that are read, or one
more token of rows of which each stands somewhere else in its reply.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ControlError
from ..structure.layout import Layout
from .acting import Acting, Pass, as_it_is
from .adapter import Adapter
from .adapters import Adapted
from .bank import Bank, Mask, Stage
from .batches import Batch
from .capture import Reader
from .intervene import Intervention, Reach, RowGate
from .positions import positions_of
from .states import States

KEPT = 16  # slots that no row has are kept up to this number: they are likely to be asked for again


@dataclass(frozen=True, eq=False)
class Slot:
    """What one control does to one row once its gates are decided: edits, adapters, and states of single prompts."""

    interventions: tuple[Intervention, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    states: tuple[States, ...] = ()
    _decided: dict[tuple[bool, ...], Slot | None] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Raises ControlError for an adapter that cannot act on single rows of a batch."""
        if any(adapter.prompts or adapter.virtual_tokens is not None for adapter in self.adapters):
            raise ControlError(
                "Adaption prompts and embeddings that open prompts act on whole batches, so they cannot be served; distil the control into a LoRA adapter."
            )

    @property
    def gates(self) -> list[RowGate]:
        return list(dict.fromkeys(gate for item in self.interventions for gate in item.reach.gates))

    def decided(self, fired: Mapping[RowGate, bool]) -> Slot | None:
        """The same without gates: edits whose gates did not all fire are gone. None where nothing is left; always the same one."""
        key = tuple(fired[gate] for gate in self.gates)
        if key not in self._decided:
            items = [item for item in self.interventions if all(fired[gate] for gate in item.reach.gates)]
            left = tuple(replace(item, reach=replace(item.reach, gates=())) for item in items)
            self._decided[key] = Slot(left, self.adapters, self.states) if left or self.adapters or self.states else None
        return self._decided[key]

    @property
    def own_tokens(self) -> int | None:
        """How many of a prompt's last tokens it treats unlike those before them; None where it looks at whole prompts."""
        if self.states:
            return None
        reaches = [item.reach for item in self.interventions]
        return max([1, *(-position for reach in reaches for position in reach.positions)])


@dataclass
class Seen:
    """What was really changed in one row, by values before and after: tokens of its prompt and of its reply, and where."""

    prompt_tokens: int = 0
    reply_tokens: int = 0
    places: set[str] = field(default_factory=set)


class SlotSteering(Acting):
    """The edits of some slots attached to one model. `rows` names the slot of every row of the pass to come, None for none."""

    def __init__(self, model: nn.Module, layout: Layout, slots: Sequence[Slot]) -> None:
        super().__init__(model)
        self.layout = layout
        self.numbers = {id(slot): number for number, slot in enumerate(slots, start=1)}
        items = [item for slot in slots for item in slot.interventions]
        self.bank = Bank([[], *(slot.interventions for slot in slots)], {item.module: self._like(item.module) for item in items})
        self.rows: tuple[int, ...] = ()
        self.said: tuple[int, ...] | None = None  # reply tokens before the pass to come, of every row; None for prompts
        self.watched: dict[int, Seen] = {}  # by row of the pass to come
        self._changed: dict[int, Tensor] = {}
        self._real = torch.empty(0)

    def _like(self, name: str) -> Tensor:
        return next(self.model.get_submodule(name).parameters(), next(self.model.parameters()))

    def lay(self) -> None:
        for (name, side), stages in self.bank.places.items():
            place = self.on_output if side == "output" else self.on_input
            place(self.model.get_submodule(name), partial(self._through, name, stages))

    def begin(self, started: Pass) -> None:
        """Bind the rows' edits and make the masks of the pass."""
        self.bank.bind(self.rows, 1, started.tokens.device)
        masks = self._reading(started) if self.said is None else self._saying(started, self.said)
        for pattern in self.bank.patterns:
            pattern.mask = pattern.combined(masks)
        self._changed, self._real = {}, started.real if self.watched else self._real

    def _reading(self, started: Pass) -> dict[Reach, Mask]:
        real = started.real
        positions = positions_of(real, torch.zeros(len(real), dtype=torch.long, device=real.device))
        padded = started.padded
        return {
            reach: True if not padded and reach.tokens == "all" else (real & reach.among(positions))[..., None].float()
            for reach in self.bank.reaches()
        }

    def _saying(self, started: Pass, said: Sequence[int]) -> dict[Reach, Mask]:
        """One token of every row; whether an edit holds there is known without looking at a tensor."""
        masks: dict[Reach, Mask] = {}
        for reach in self.bank.reaches():
            holds = [reach.holds(position) for position in said]
            same = len(set(holds)) == 1
            masks[reach] = holds[0] if same else torch.tensor(holds, device=started.tokens.device).float()[:, None, None]
        return masks

    def _through(self, name: str, stages: Sequence[Stage], x: Tensor) -> Tensor:
        before = x
        for stage in stages:
            x = stage(x)
        if self.watched and x is not before:
            differs = (before != x).any(-1)
            for row, seen in self.watched.items():
                own = differs[row] & self._real[row].to(differs.device)
                if bool(own.any()):
                    seen.places.add(name)
                    self._changed[row] = self._changed[row] | own if row in self._changed else own
        return x

    def count(self) -> None:
        """The pass is over: tokens that changed anywhere in it are counted."""
        for row, changed in self._changed.items():
            if self.said is None:
                self.watched[row].prompt_tokens += int(changed.sum())
            else:
                self.watched[row].reply_tokens += int(changed.sum())


class Slots:
    """The slots that rows of one model have or had lately, in force while the context lasts.

    Hooks are laid anew when a slot comes that is not among them; between two passes, and only by whoever runs them.
    """

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self.model, self.layout = model, layout
        self._slots: list[Slot] = []  # the latest last
        self._stack = ExitStack()
        self._steering: SlotSteering | None = None
        self._adapted: list[tuple[int, Adapted]] = []

    @contextmanager
    def attached(self) -> Iterator[Slots]:
        try:
            yield self
        finally:
            self._stack.close()

    def bind(self, rows: Sequence[Slot | None], said: Sequence[int] | None, watched: dict[int, Seen]) -> None:
        """To the rows of the pass to come: their slots, how many tokens each has said (None: prompts are read), and which are watched."""
        wanted = list({id(slot): slot for slot in rows if slot is not None}.values())
        if any(all(slot is not known for known in self._slots) for slot in wanted):
            self._lay(wanted)
        numbers = {id(slot): number for number, slot in enumerate(self._slots, start=1)}
        if self._steering is not None:
            self._steering.rows = tuple(0 if slot is None else numbers[id(slot)] for slot in rows)
            self._steering.said, self._steering.watched = None if said is None else tuple(said), watched
        for owner, adapted in self._adapted:
            own = [row for row, slot in enumerate(rows) if id(slot) == owner]
            adapted.rows = None if len(own) == len(rows) else torch.tensor(own, dtype=torch.long)

    def count(self) -> None:
        """The pass is over."""
        if self._steering is not None:
            self._steering.count()

    def _lay(self, wanted: Sequence[Slot]) -> None:
        others = [slot for slot in self._slots if all(slot is not other for other in wanted)]
        self._slots = [*others[-max(0, KEPT - len(wanted)) :], *wanted] if len(wanted) < KEPT else list(wanted)
        self._stack.close()
        self._adapted = []
        for slot in self._slots:
            for adapter in slot.adapters:  # before the edits, as for one control alone
                adapted = Adapted(self.model, adapter)
                adapted.rows = torch.empty(0, dtype=torch.long)
                self._adapted.append((id(slot), self._stack.enter_context(adapted.attached())))
        self._steering = self._stack.enter_context(SlotSteering(self.model, self.layout, self._slots).attached())


def decide(model: Any, layout: Layout, gates: Sequence[RowGate], batch: Batch) -> list[dict[RowGate, bool]]:
    """What every gate says of every row of a batch of prompts: the model as it is, run up to the last gate's layer."""
    reader = Reader(model, layout, [gate.site for gate in gates])
    with as_it_is(model), torch.no_grad():
        values = reader.read(lambda: model.base_model(**batch.inputs()), batch.ends)
    said = torch.stack([gate.fires(values[:, number]) for number, gate in enumerate(gates)], 1).tolist()
    return [dict(zip(gates, row)) for row in said]
