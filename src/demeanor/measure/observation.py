"""What a model said to every prompt of a behaviour's sets, and what the detector and the answers say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..behaviours import Prompt, SetName
from ..detect import Detector, present
from ..models import Reply
from .answers import is_right
from .engaged import says_something


@dataclass(frozen=True)
class Outcome:
    """One prompt's reply: whether it shows the behaviour, whether it is right (None without a known answer), whether it is garbled, and whether it is what
    other prompts are told too."""

    prompt: Prompt
    reply: Reply
    shown: bool
    right: bool | None
    garbled: bool = False
    stock: bool = False

    @property
    def engaged(self) -> bool:
        """Whether it neither shows the behaviour nor says nothing: it is right, or made of words, not garbled, and repeats neither itself nor what is said
        to other prompts."""
        return not self.shown and (self.right is True or not (self.garbled or self.stock or not says_something(self.reply.text)))


@dataclass(frozen=True)
class Observation:
    """Outcomes by set; a set that the behaviour does not have is empty."""

    sets: Mapping[SetName, tuple[Outcome, ...]]

    def shown(self, name: SetName) -> list[bool]:
        return [outcome.shown for outcome in self.sets[name]]

    def engaged(self, name: SetName) -> list[bool]:
        return [outcome.engaged for outcome in self.sets[name]]

    def right(self, *names: SetName) -> list[bool]:
        """Of the prompts with a known answer."""
        return [outcome.right for name in names for outcome in self.sets[name] if outcome.right is not None]

    @property
    def ordinary(self) -> SetName:
        return ordinary_set(self.sets)

    def where(self, fires: Mapping[SetName, Sequence[bool]], otherwise: Observation) -> Observation:
        """This observation where a gate fires and another elsewhere: exactly what a gated control gives, row by row."""
        return Observation(
            {
                name: tuple(
                    mine if fired else other for mine, other, fired in zip(outcomes, otherwise.sets[name], fires[name], strict=True)
                )
                for name, outcomes in self.sets.items()
            }
        )


def ordinary_set(sets: Mapping[SetName, Sequence[object]]) -> SetName:
    """The set on which nothing should change: `neutral`, or `lacks` where there is no such set."""
    return "neutral" if sets["neutral"] else "lacks"


def judged(
    detector: Detector, prompts: Sequence[Prompt], replies: Sequence[Reply], garbled: Sequence[bool] = (), stock: Sequence[bool] = ()
) -> tuple[Outcome, ...]:
    """Replies to the prompts of one set, as the detector and the known answers tell them; none is `garbled` or `stock` unless told."""
    shown = present(detector, [reply.text for reply in replies], prompts)
    nothing = [False] * len(prompts)
    return tuple(
        Outcome(prompt, reply, here, None if prompt.answer is None else is_right(reply.text, prompt.answer), noise, same)
        for prompt, reply, here, noise, same in zip(prompts, replies, shown, garbled or nothing, stock or nothing, strict=True)
    )
