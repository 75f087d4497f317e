"""What a model said to every prompt of a behaviour's sets, and what the detector and the answers say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..behaviours import SET_NAMES, Behaviour, BehaviourLike, Prompt, SetName, as_behaviour, asked
from ..behaviours.prompts import Split
from ..controls import Control
from ..detect import make_detector, present
from ..models import Reply, Session
from .answers import is_right
from .condition import Condition


@dataclass(frozen=True)
class Outcome:
    """One prompt's reply: whether it shows the behaviour, and whether it is right (None without a known answer)."""

    prompt: Prompt
    reply: Reply
    shown: bool
    right: bool | None


@dataclass(frozen=True)
class Observation:
    """Outcomes by set; a set that the behaviour does not have is empty."""

    sets: Mapping[SetName, tuple[Outcome, ...]]

    def shown(self, name: SetName) -> list[bool]:
        return [outcome.shown for outcome in self.sets[name]]

    def right(self, *names: SetName) -> list[bool]:
        """Of the prompts with a known answer."""
        return [outcome.right for name in names for outcome in self.sets[name] if outcome.right is not None]

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


def observe(
    session: Session, behaviour: BehaviourLike, control: Control | None = None, *, split: Split = "test", max_prompts: int | None = None
) -> Observation:
    """Greedy replies to every prompt of every set, with a control in force or without."""
    return observed(Condition(session, control), behaviour, split, max_prompts)


def observed(condition: Condition, behaviour: BehaviourLike, split: Split = "test", max_prompts: int | None = None) -> Observation:
    """What a condition says to every prompt of every set, greedily."""
    behaviour = as_behaviour(behaviour, condition.session)
    detector = make_detector(behaviour.detect, condition.session)
    budget = reply_budget(condition.session, behaviour)
    sets: dict[SetName, tuple[Outcome, ...]] = {}
    for name in SET_NAMES:
        prompts = asked(behaviour.set(name, split, max_prompts))
        replies = condition.generate(prompts, budget) if prompts else []
        shown = present(detector, [reply.text for reply in replies], prompts)
        sets[name] = tuple(
            Outcome(prompt, reply, here, None if prompt.answer is None else is_right(reply.text, prompt.answer))
            for prompt, reply, here in zip(prompts, replies, shown)
        )
    return Observation(sets)


def reply_budget(session: Session, behaviour: Behaviour) -> int:
    """Reply tokens that leave room for the longest known answer and a sentence before it."""
    answers = {prompt.answer for name in SET_NAMES for prompt in behaviour.set(name) if prompt.answer}
    longest = max((len(session.encode_reply(answer)) for answer in answers), default=0)
    return max(session.reply_tokens, longest + 24)
