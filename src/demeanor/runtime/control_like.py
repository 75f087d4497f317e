"""What a control has to have, and whether something is one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from ..errors import ControlError, mistaken
from ..structure.layout import Layout
from .adapter import Adapter
from .intervene import Intervention
from .states import States

if TYPE_CHECKING:
    from torch import Tensor


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
