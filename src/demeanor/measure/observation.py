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
    """One prompt's reply: whether it shows the behaviour, whether it is right (None without a known answer), and whether it is garbled."""

    prompt: Prompt
    reply: Reply
    shown: bool
    right: bool | None
    garbled: bool = False

    @property
    def engaged(self) -> bool:
        """Whether it neither shows the behaviour nor says nothing: it is right, or made of words, not garbled, not repeating itself."""
        return not self.shown and (self.right is True or (not self.garbled and says_something(self.reply.text)))


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
        """The set on which nothing should change: `neutral`, or `lacks` where there is no such set."""
        return "neutral" if self.sets["neutral"] else "lacks"

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


def judged(detector: Detector, prompts: Sequence[Prompt], replies: Sequence[Reply], garbled: Sequence[bool] | None = None) -> tuple[Outcome, ...]:
    """Replies to the prompts of one set, as the detector and the known answers tell them; none is `garbled` unless told."""
    shown = present(detector, [reply.text for reply in replies], prompts)
    return tuple(
        Outcome(prompt, reply, here, None if prompt.answer is None else is_right(reply.text, prompt.answer), noise)
        for prompt, reply, here, noise in zip(prompts, replies, shown, garbled or [False] * len(prompts), strict=True)
    )
