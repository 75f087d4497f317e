"""A control for every prompt: which row of a batch has which, and how doses are turned while they act."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import ControlError
from .acting import lock_of
from .control_like import ControlLike
from .intervene import Intervention
from .steering import Steering


class Rows:
    """The controls of `Session.controlled_rows` in force; `turn` changes the dose of one of them."""

    def __init__(
        self, steering: Steering, controls: Sequence[ControlLike], interventions: Callable[[ControlLike], list[Intervention]]
    ) -> None:
        self._steering, self._controls, self._interventions = steering, controls, interventions

    def turn(self, control: ControlLike, dose: float) -> None:
        """From now on the rows that have this control have it `.scaled(dose)`; hooks stay as they are."""
        slot = next((number for number, other in enumerate(self._controls, start=1) if other is control), None)
        if slot is None:
            raise ControlError("No row has this control, so its dose cannot be turned; turn one of those given to controlled_rows.")
        with lock_of(self._steering.model):  # a pass in progress ends with the dose it began with
            self._steering.bank.put(slot, self._interventions(control.scaled(dose)))
