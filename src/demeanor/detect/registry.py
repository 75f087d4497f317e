"""What every detector is, and the registry that finds one by the name in a behaviour file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from ..behaviours import Behaviour, Detect, Preset, Prompt
from ..errors import DataError
from ..models import Session
from ..models.thinking import spoken


class Detector(Protocol):
    """Says how likely each reply is to show the behaviour."""

    def probabilities(self, replies: Sequence[str], prompts: Sequence[Prompt]) -> list[float]:
        """One probability in [0, 1] per reply; `prompts` are what the replies answer, in the same order, or none where they are not known."""
        ...


@runtime_checkable
class AsksModel(Protocol):
    """A detector that asks a model, which is not known yet when a behaviour is read."""

    def asking(self, session: Session) -> Detector:
        """The same, asking this model."""
        ...


Factory = TypeVar("Factory", bound=Callable[..., Detector])
_REGISTRY: dict[str, Callable[..., Detector]] = {}


def detector(name: str) -> Callable[[Factory], Factory]:
    """Registers a factory under the name that behaviour files use."""

    def register(factory: Factory) -> Factory:
        _REGISTRY[name] = factory
        return factory

    return register


def make_detector(detect: Detect, session: Session | None = None) -> Detector:
    """The detector a behaviour asks for, asking `session` if it asks a model; DataError when there is none of that name or
    its arguments do not fit."""
    if detect.name not in _REGISTRY:
        raise DataError(f"There is no detector {detect.name!r}; the detectors are {', '.join(sorted(_REGISTRY))}.")
    try:
        made = _REGISTRY[detect.name](**detect.arguments)
    except TypeError as error:
        raise DataError(f"The detector {detect.name!r} does not take these arguments: {error}.") from error
    return made.asking(session) if session is not None and isinstance(made, AsksModel) else made


def check_detector(behaviour: Behaviour | Preset) -> None:
    """Raises DataError for a mistake in a behaviour's detector, which must not wait for the model; presets have none."""
    if isinstance(behaviour, Behaviour):
        make_detector(behaviour.detect)


def present(chosen: Detector, replies: Sequence[str], prompts: Sequence[Prompt]) -> list[bool]:
    """Whether the behaviour is there (probability >= 0.5), per reply; what a model only thought does not count."""
    probabilities: list[Any] = chosen.probabilities([spoken(reply) for reply in replies], prompts)
    return [probability >= 0.5 for probability in probabilities]
