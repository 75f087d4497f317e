"""What every detector is, and the registry that finds one by the name in a behaviour file.

`@detector` adds one, from anywhere (docs/extending.md).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from ..behaviours import Behaviour, Detect, Preset, Prompt
from ..errors import DataError
from ..io.registry import Record, Registry, misfit
from ..models import Session
from ..models.thinking import spoken

ROUNDING = 1e-6  # by which single precision may leave [0, 1]


@runtime_checkable
class Detector(Protocol):
    """Says how likely each reply is to show the behaviour."""

    def probabilities(self, replies: Sequence[str], prompts: Sequence[Prompt]) -> Sequence[float]:
        """One probability in [0, 1] per reply; `prompts` are what the replies answer, in the same order, or none where they are not known."""
        ...


@runtime_checkable
class AsksModel(Detector, Protocol):
    """A detector that asks a model, which is not known yet when a behaviour is read."""

    def asking(self, session: Session) -> Detector:
        """The same, asking this model."""
        ...


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a detector says of itself: whether it asks a model (it then has a method `asking`), and whether it must have the prompts."""

    needs_model: bool = False
    needs_prompts: bool = False


Factory = Callable[..., Detector]
F = TypeVar("F", bound=Factory)
DETECTORS: Registry[Factory, Traits] = Registry("detector", "demeanor.detectors", Traits())


def detector(name: str, *, needs_model: bool = False, needs_prompts: bool = False) -> Callable[[F], F]:
    """Registers a factory under the name that behaviour files use; see `Traits`. DataError for a name that comes with the package."""
    return DETECTORS.register(name, Traits(needs_model=needs_model, needs_prompts=needs_prompts))


@dataclass(frozen=True)
class NamedDetector:
    """A detector under the name it was asked for; what it returns is checked, and what it needs is seen to be there."""

    name: str
    wrapped: Detector
    lacks_model: bool
    needs_prompts: bool

    def probabilities(self, replies: Sequence[str], prompts: Sequence[Prompt]) -> list[float]:
        """One probability in [0, 1] per reply. Raises DataError, naming the detector, where it has no model or prompts to look at or
        does not return that."""
        if self.lacks_model:
            raise DataError(f"The detector {self.name!r} asks the model, and there is none here; name it with --model.")
        if self.needs_prompts and len(prompts) != len(replies):
            raise DataError(f"The detector {self.name!r} needs the prompt of every reply; name its column with --prompt.")
        if not replies:
            return []
        values = self.wrapped.probabilities(replies, prompts)
        if not isinstance(values, Iterable):
            raise DataError(f"The detector {self.name!r} returns {_kind(values)}; it must return a probability per reply.")
        probabilities = [self._probability(value) for value in values]
        if len(probabilities) != len(replies):
            raise DataError(
                f"The detector {self.name!r} returns {len(probabilities)} values for {len(replies)} replies; it must return one each."
            )
        return probabilities

    def _probability(self, value: Any) -> float:
        number = _number(value)
        if number is None or not -ROUNDING <= number <= 1 + ROUNDING:
            what = _kind(value) if number is None else f"{number:g}"
            raise DataError(f"The detector {self.name!r} returns {what} for a reply; a probability is a number from 0 to 1.")
        return min(max(number, 0.0), 1.0)


def make_detector(detect: Detect, session: Session | None = None) -> NamedDetector:
    """The detector a behaviour asks for, asking `session` if it asks a model. Raises DataError when there is none of that name, its
    arguments do not fit, or what its factory returns is no detector."""
    asked = DETECTORS.named(detect.name)
    reason = misfit(asked.factory, **detect.arguments)
    if reason is not None:
        raise DataError(f"The detector {detect.name!r} does not take these arguments: {reason}; {_arguments(asked)}.")
    made = asked.factory(**detect.arguments)
    if not isinstance(made, Detector):
        raise DataError(f"The factory of the detector {detect.name!r} returns {_kind(made)}, which has no method probabilities.")
    _refuse_signature(detect.name, "probabilities(replies, prompts)", misfit(made.probabilities, [], []))
    if asked.traits.needs_model:
        if not isinstance(made, AsksModel):
            raise DataError(f"The detector {detect.name!r} says that it needs a model, and {_kind(made)} has no method asking.")
        _refuse_signature(detect.name, "asking(session)", misfit(made.asking, session))
        made = made if session is None else made.asking(session)
    return NamedDetector(detect.name, made, asked.traits.needs_model and session is None, asked.traits.needs_prompts)


def check_detector(behaviour: Behaviour | Preset) -> None:
    """Raises DataError for a mistake in a behaviour's detector, which must not wait for the model; presets have none."""
    if isinstance(behaviour, Behaviour):
        make_detector(behaviour.detect)


def likely(chosen: Detector, replies: Sequence[str], prompts: Sequence[Prompt]) -> list[float]:
    """How likely each reply shows the behaviour; what a model only thought does not count."""
    return list(chosen.probabilities([spoken(reply) for reply in replies], prompts))


def present(chosen: Detector, replies: Sequence[str], prompts: Sequence[Prompt]) -> list[bool]:
    """Whether the behaviour is there (probability >= 0.5), per reply."""
    return [probability >= 0.5 for probability in likely(chosen, replies, prompts)]


def _refuse_signature(name: str, method: str, reason: str | None) -> None:
    if reason is not None:
        raise DataError(f"The detector {name!r} must have the method {method}: {reason}.")


def _arguments(asked: Record[Factory, Traits]) -> str:
    names = list(inspect.signature(asked.factory).parameters)
    return f"its arguments are {', '.join(names)}" if names else "it takes none"


def _number(value: Any) -> float | None:
    """What a detector returned for a reply as a number; texts that look like one are none."""
    try:
        return None if isinstance(value, str) else float(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor of several numbers raises the last
        return None


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a value of type {type(value).__name__}"
