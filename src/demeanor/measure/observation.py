"""What a model said to every prompt of a behaviour's sets, and what the detector and the answers say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..behaviours import Prompt, SetName
from ..detect import Detector, present
from ..models import Reply
from .answers import is_right
from .engaged import says_something, stock


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
    """Outcomes by set; a set that the behaviour does not have is empty. usual: how much replies to `shows` may have in common before they are stock."""

    sets: Mapping[SetName, tuple[Outcome, ...]]
    usual: float = 1.0

    def shown(self, name: SetName) -> list[bool]:
        return [outcome.shown for outcome in self.sets[name]]

    def engaged(self, name: SetName) -> list[bool]:
        return [outcome.engaged for outcome in self.sets[name]]

    def useful(self, name: SetName) -> list[bool]:
        """Which replies engage and are not known to be wrong."""
        return [outcome.engaged and outcome.right is not False for outcome in self.sets[name]]

    def right(self, *names: SetName) -> list[bool]:
        """Of the prompts with a known answer."""
        return [outcome.right for name in names for outcome in self.sets[name] if outcome.right is not None]

    @property
    def ordinary(self) -> SetName:
        return ordinary_set(self.sets)

    def where(self, fires: Mapping[SetName, Sequence[bool]], otherwise: Observation) -> Observation:
        """This observation where a gate fires and another elsewhere: exactly what a gated control gives, row by row. What is stock is told anew."""
        mixed = {
            name: tuple(mine if fired else other for mine, other, fired in zip(outcomes, otherwise.sets[name], fires[name], strict=True))
            for name, outcomes in self.sets.items()
        }
        return Observation({**mixed, "shows": with_stock(mixed["shows"], self.usual)}, self.usual)


def ordinary_set(sets: Mapping[SetName, Sequence[object]]) -> SetName:
    """The set on which nothing should change: `neutral`, or `lacks` where there is no such set."""
    return "neutral" if sets["neutral"] else "lacks"


def with_stock(outcomes: Sequence[Outcome], usual: float) -> tuple[Outcome, ...]:
    """The outcomes of one set, each with whether most of its reply, more than `usual`, is in replies to others of them."""
    same = stock([outcome.prompt for outcome in outcomes], [outcome.reply.text for outcome in outcomes], usual)
    return tuple(replace(outcome, stock=alike) for outcome, alike in zip(outcomes, same, strict=True))


def judged(detector: Detector, prompts: Sequence[Prompt], replies: Sequence[Reply], garbled: Sequence[bool] | None = None) -> tuple[Outcome, ...]:
    """Replies to the prompts of one set, as the detector and the known answers tell them; none is `garbled` unless told."""
    shown = present(detector, [reply.text for reply in replies], prompts)
    return tuple(
        Outcome(prompt, reply, here, None if prompt.answer is None else is_right(reply.text, prompt.answer), noise)
        for prompt, reply, here, noise in zip(prompts, replies, shown, garbled or [False] * len(prompts), strict=True)
    )
