"""A control for every prompt: which row of a batch has which, and how doses are turned while they act."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

from ..errors import ControlError, mistaken
from ..structure.layout import Layout
from .acting import lock_of
from .adapters import Adapter
from .intervene import Intervention
from .prompt_states import States
from .steering import Steering


@runtime_checkable
class ControlLike(Protocol):
    """What `Session.controlled` and `Session.controlled_rows` need of a control."""

    @property
    def layout_hash(self) -> str: ...

    @property
    def model_name(self) -> str: ...

    @property
    def weights(self) -> str: ...

    @property
    def states(self) -> tuple[States, ...]: ...

    @property
    def adapters(self) -> tuple[Adapter, ...]: ...

    def interventions(self, layout: Layout, tensor: Callable[[str], Tensor]) -> list[Intervention]: ...

    def scaled(self, dose: float) -> ControlLike: ...


C = TypeVar("C", bound=ControlLike)


def as_control(control: C) -> C:
    """The control that it is. Raises ControlError for anything else, such as a path or a direction."""
    if not isinstance(control, ControlLike):
        raise ControlError(
            mistaken(
                "A control",
                control,
                "read one from its file with load_control(...), or make one of a direction with ablate(...) or add(...)",
            )
        )
    return control


def as_controls(controls: Iterable[C | None]) -> list[C | None]:
    """Several controls, None being the untouched model. Raises ControlError for a single one, and for what is no control."""
    if isinstance(controls, (str, ControlLike)) or not isinstance(controls, Iterable):
        raise ControlError(mistaken("A list of controls", controls, "give one control per prompt, or None for the untouched model"))
    controls = list(controls)
    for control in {id(control): control for control in controls if control is not None}.values():  # many rows may have one
        as_control(control)
    return controls


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
