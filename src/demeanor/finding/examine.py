"""Looking at a behaviour before any work: what its sets hold, whether that is enough, and what its detector says of some replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..behaviours import ROBUST_SETS, SET_NAMES, Behaviour, Prompt, SetName
from ..behaviours.prompts import SPLITS, Split
from ..measure import Bench, Observation
from ..measure.robustness import refuse_taken_names
from ..models import Session
from .filter import FEWEST, FEWEST_VAL

SAMPLED = 8  # prompts of each set that a model is asked
EXPECTED: Mapping[str, bool] = {"shows": True, "lacks": False, "guard": True}  # what replies should exhibit


@dataclass(frozen=True)
class SetExamined:
    """One set: how many prompts there are, and in each split, how many have a known answer, or a reply as data; of the `asked` ones, how
    many replies show the behaviour. A robust set is whole: it has no splits."""

    name: str
    prompts: int
    splits: Mapping[Split, int]
    answers: int
    replies: int
    asked: int
    shown: int

    def to_json(self) -> dict[str, Any]:
        return {"set": self.name, "prompts": self.prompts, **{str(split): count for split, count in self.splits.items()}, "answers": self.answers, "replies": self.replies,
                "asked": self.asked, "shown": self.shown}  # fmt: skip


@dataclass(frozen=True)
class Examined:
    """A behaviour as it was found: its sets (the robust ones, which are only counted, apart), what stands in the way of working with it, and the replies of a model where one was asked."""

    behaviour: Behaviour
    sets: tuple[SetExamined, ...]
    robust: tuple[SetExamined, ...]
    problems: tuple[str, ...]
    remarks: tuple[str, ...]
    observed: Observation | None

    def to_json(self) -> dict[str, Any]:
        return {"behaviour": self.behaviour.name, "detector": self.behaviour.detect.name, "sets": [each.to_json() for each in self.sets], "robust": [each.to_json() for each in self.robust],
                "problems": list(self.problems), "remarks": list(self.remarks)}  # fmt: skip


def examine(behaviour: Behaviour, session: Session | None = None, per_set: int = SAMPLED) -> Examined:
    """A behaviour looked at; with a model, `per_set` prompts of the train and val splits of each set are asked, and judged.

    Raises DataError for what is wrong with the behaviour's detector, and for a robust set that has the name of a built-in rewording.
    """
    refuse_taken_names(behaviour)
    observed = _asked(behaviour, session, per_set) if session is not None else None
    sets = tuple(_set(name, behaviour.set(name), observed.shown(name) if observed is not None else (), SPLITS) for name in SET_NAMES)
    robust = tuple(_set(f"{each.name}, {of}", each.set(of)) for each in behaviour.robust for of in ROBUST_SETS if each.set(of))
    problems = [problem for one in sets for problem in _problems(one)]
    remarks = [f"{name}: none; {lost}" for name, lost in _LOST.items() if not behaviour.set(name)]
    return Examined(behaviour, sets, robust, tuple(problems), tuple(remarks), observed)


_LOST: Mapping[SetName, str] = {
    "guard": "nothing says what must still show the behaviour, so results cannot tell what else is lost, and no gate is made.",
    "neutral": "what a control changes elsewhere is measured on lacks.",
}


def _asked(behaviour: Behaviour, session: Session, per_set: int) -> Observation:
    prompts = {
        name: [prompt for split in ("train", "val") for prompt in behaviour.set(name, split, per_set)][:per_set]
        for name in SET_NAMES
    }
    return Bench(session, behaviour, "train").on(prompts).untouched.observation


def _set(name: str, prompts: Sequence[Prompt], shown: Sequence[bool] = (), splits: Sequence[Split] = ()) -> SetExamined:
    return SetExamined(
        name=name,
        prompts=len(prompts),
        splits={split: sum(prompt.split == split for prompt in prompts) for split in splits},
        answers=sum(prompt.answer is not None for prompt in prompts),
        replies=sum(prompt.reply is not None for prompt in prompts),
        asked=len(shown),
        shown=sum(shown),
    )


def _problems(one: SetExamined) -> list[str]:
    """What stands in the way of finding a direction with a set, and how it is mended."""
    problems = []
    few = one.splits["train"] + one.splits["val"] < FEWEST or one.splits["val"] < FEWEST_VAL or one.splits["train"] < FEWEST_VAL
    if few and (one.prompts or one.name in ("shows", "lacks")):
        problems.append(
            f"{one.name} has {one.splits['train']} train and {one.splits['val']} val prompts, and {FEWEST} in all with {FEWEST_VAL} in val"
            " are the fewest to find a direction with; give it more (60 a set are a working minimum)."
        )
    if one.name in EXPECTED and one.asked:
        fitting = one.shown if EXPECTED[one.name] else one.asked - one.shown
        if fitting < one.asked / 2:
            does = "shows" if EXPECTED[one.name] else "does not show"
            problems.append(
                f"the model {does} the behaviour on {fitting} of {one.asked} prompts of {one.name}; use prompts on which it does, or a detector"
                " that knows how this model says it."
            )
    return problems
