"""A behaviour: what it is called, the prompts that show it, and what tells that it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from ..errors import DataError
from ..io.display import brief, object_html, shown
from ..io.registry import file_and_name
from ..progress import warn
from .audience import CALLED, Audience, LoadedModel, audience_of
from .prompts import SPLITS, Prompt, Split, distinct, sampled
from .questions import Question
from .robust_set import ROBUST_SETS, RobustSet, robust_sets
from .schema import BehaviourFile, Detect, RobustSources, Source, Words

SetName = Literal["shows", "lacks", "guard", "neutral"]
SET_NAMES: tuple[SetName, ...] = ("shows", "lacks", "guard", "neutral")
PromptSet = Sequence[str | Prompt | Mapping[str, Any]] | Mapping[str, Any]  # prompts in place, or where they are read from


@dataclass(frozen=True, kw_only=True, repr=False)
class Behaviour:
    """A name, four prompt sets, a detector and questions. Sets that were not given are empty.

    robust: prompts besides, which are only measured. audience: of a preset that was settled, the kind of model it was settled for; None where the text is for any model.
    """

    name: str
    description: str = ""
    detect: Detect = field(default_factory=lambda: Detect(name="refusal"))
    questions: tuple[Question, ...] = ()
    words: Words = field(default_factory=Words)
    shows: tuple[Prompt, ...] = ()
    lacks: tuple[Prompt, ...] = ()
    guard: tuple[Prompt, ...] = ()
    neutral: tuple[Prompt, ...] = ()
    pairs: bool = False
    robust: tuple[RobustSet, ...] = ()
    audience: Audience | None = None

    def __post_init__(self) -> None:
        for name in SET_NAMES:
            other = next((row for row in getattr(self, name) if not isinstance(row, Prompt)), None)
            if other is not None:
                raise DataError(
                    f"The set {name!r} of {self.name!r} holds a {type(other).__name__}, which is no Prompt; make the behaviour with Behaviour.of."
                )

    @classmethod
    def of(
        cls,
        name: str,
        *,
        shows: PromptSet,
        lacks: PromptSet,
        guard: PromptSet = (),
        neutral: PromptSet = (),
        detect: str | Mapping[str, Any] | Detect = "refusal",
        questions: Sequence[Question | Mapping[str, Any]] = (),
        pairs: bool = False,
        description: str = "",
        robust: Mapping[str, Mapping[str, PromptSet]] | None = None,
    ) -> Behaviour:
        """A behaviour from lists of prompts: texts, prompts, or mappings with prompt, answer, reply and system.

        Everything is as in a behaviour file, and checked alike: a set may also be a source such as {"file": "prompts.csv"}, its
        path relative to the working directory. Raises DataError for the first thing that is wrong.
        """
        values = {
            "name": name, "description": description, "detect": detect, "questions": list(questions), "pairs": pairs,
            "shows": shows, "lacks": lacks, "guard": guard or None, "neutral": neutral or None, "robust": robust,
        }  # fmt: skip
        return behaviour_of(values, Path(), f"The behaviour {name!r}")

    @property
    def has_replies(self) -> bool:
        """Whether `shows` and `lacks` are texts with and without the behaviour, not prompts that bring it about."""
        return bool(self.shows and self.lacks) and all(prompt.reply is not None for prompt in self.shows + self.lacks)

    def set(self, name: SetName, split: Split | None = None, limit: int | None = None) -> list[Prompt]:
        """One prompt set, or one split of it, at most `limit` prompts: a fair sample of all sources, in order, pairs together.

        Raises DataError for another name than those of sets and splits.
        """
        for what, given, known in (("set", name, SET_NAMES), ("split", split, SPLITS)):
            if given is not None and given not in known:
                raise DataError(f"There is no {what} {given!r}; use one of {', '.join(known)}.")
        prompts: tuple[Prompt, ...] = getattr(self, name)
        chosen = [prompt for prompt in prompts if split is None or prompt.split == split]
        return sampled(chosen, limit)

    def all_prompts(self) -> list[Prompt]:
        """Those of the four sets; robust sets are no part of what a behaviour is found and fitted with."""
        return [prompt for name in SET_NAMES for prompt in getattr(self, name)]

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {len(self.set(name)) or 'none'}" for name in SET_NAMES)
        counts += "".join(f", robust {each.name} {len(each.guard) + len(each.shows)}" for each in self.robust)
        return f"<Behaviour {brief(self.name)}: {counts}; detector {brief(self.detect.name)}, questions {len(self.questions)}>"

    def _repr_html_(self) -> str:
        facts = {"detector": self.detect.name, "questions": " ".join(question.ask for question in self.questions) or "none"}
        rows = []
        for name in SET_NAMES:
            prompts = self.set(name)
            splits = (sum(prompt.split == split for prompt in prompts) for split in SPLITS)
            rows.append((name, len(prompts) or "none", *splits, brief(prompts[0].text, 100) if prompts else ""))
        rows += [
            (f"robust {each.name}, {of}", len(each.set(of)), "", "", "", brief(each.set(of)[0].text, 100))
            for each in self.robust
            for of in ROBUST_SETS
            if each.set(of)
        ]
        return object_html(f"Behaviour {self.name}", facts, ("set", "prompts", *SPLITS, "the first"), rows, self.description)

    def settled(self, model: LoadedModel | None) -> Behaviour:
        """Itself. Raises DataError where it is a preset that was settled for another kind of model."""
        audience = audience_of(model)
        if self.audience in (None, audience):
            return self
        told = f"{model.name} is not of that kind" if model is not None else "no model is known here"
        raise DataError(
            f"The preset {self.name!r} was settled for {CALLED[self.audience]}, and {told}; give the unsettled behaviour({self.name!r}) instead."
        )

    def needs_prompts(self) -> None:
        """Raises DataError when `shows` or `lacks` is missing."""
        for name in ("shows", "lacks"):
            if not getattr(self, name):
                raise DataError(f"The behaviour {self.name!r} has no {name!r} prompts; finding a direction needs both sets.")


def behaviour_of(values: Mapping[str, Any], folder: Path, where: str) -> Behaviour:
    """The behaviour that the values of a behaviour file describe; paths are relative to `folder`, `where` names their source in errors.

    Raises DataError for the first thing that is wrong with them or with their data.
    """
    file = file_of(values, where)
    rows = {name: [prompt for source in getattr(file, name) for prompt in source.read(folder, f"{where}, {name}")] for name in SET_NAMES}
    sets = _checked(rows, file.pairs, where)
    robust = robust_sets(file.robust, [prompt for name in SET_NAMES for prompt in sets[name]], folder, where)
    return Behaviour(
        name=file.name, description=file.description, detect=beside(file.detect, folder), questions=tuple(file.questions), pairs=file.pairs,
        words=file.words, shows=sets["shows"], lacks=sets["lacks"], guard=sets["guard"], neutral=sets["neutral"], robust=robust,
    )  # fmt: skip


def file_of(values: Mapping[str, Any], where: str) -> BehaviourFile:
    """The values of a behaviour file, checked; no prompt is read. Raises DataError for the first thing that is wrong."""
    try:
        return BehaviourFile.model_validate(values)
    except ValidationError as error:
        raise DataError(f"{where}: {_first_mistake(error)}") from error


def beside(detect: Detect, folder: Path) -> Detect:
    """A detector's `file` is relative to the behaviour file, as the paths of sets are; so is the file of one named `path.py:name`,
    if it lies there."""
    file, in_file = detect.arguments.get("file"), file_and_name(detect.name)
    update = {"file": str(folder / file)} if isinstance(file, str) else {}
    if in_file is not None and (folder / in_file[0]).is_file():
        update["name"] = str(folder / detect.name)
    return detect.model_copy(update=update)


def _first_mistake(error: ValidationError) -> str:
    """The first thing that is wrong, as a sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        keys: Any = {"detect": Detect, "questions": Question, "words": Words}.get(str(first["loc"][0]), Source if len(first["loc"]) > 1 else BehaviourFile)
        if first["loc"][0] == "robust" and len(first["loc"]) == 3:
            keys = RobustSources
        return f"{place!r} is not a key; the keys are {', '.join(keys.model_fields)}."
    message = first["msg"].removeprefix("Value error, ")
    return f"{place + ': ' if place else ''}{message[0].lower()}{message[1:]}."


def _checked(rows: Mapping[SetName, Sequence[Prompt]], pairs: bool, where: str) -> dict[SetName, tuple[Prompt, ...]]:
    """The four sets, every prompt once. Raises DataError where they contradict each other."""
    rows = dict(rows)
    sets: dict[SetName, tuple[Prompt, ...]] = {}
    if pairs:  # what repeats in one set need not repeat in the other
        sets |= _paired(rows.pop("shows"), rows.pop("lacks"), where)
    sets |= {name: distinct(prompts, f"{where}, {name}") for name, prompts in rows.items()}
    _refuse_overlap(sets, where)
    _tell_half_replies(sets, where)
    return sets


def _paired(shows: Sequence[Prompt], lacks: Sequence[Prompt], where: str) -> dict[SetName, tuple[Prompt, ...]]:
    """Both sets with the rows of a pair in the same split, every pair once."""
    if len(shows) != len(lacks):
        raise DataError(f"{where}: pairs needs as many rows in lacks as in shows; there are {len(lacks)} and {len(shows)}.")
    pairs = [(one, replace(other, pair=one.pair or one.messages)) for one, other in zip(shows, lacks)]
    both: dict[Any, tuple[Prompt, Prompt]] = {}
    for pair in pairs:
        both.setdefault(tuple((prompt.key, prompt.reply, prompt.answer) for prompt in pair), pair)
    if len(both) < len(shows):
        warn(f"{where}: {len(shows) - len(both)} of {len(shows)} pairs repeat another and are counted once.")
    return {"shows": tuple(one for one, _ in both.values()), "lacks": tuple(other for _, other in both.values())}


# Sets that say opposite things of the same prompt.
_APART: tuple[tuple[SetName, SetName], ...] = (("shows", "lacks"), ("shows", "guard"), ("shows", "neutral"), ("lacks", "guard"))


def _refuse_overlap(sets: Mapping[SetName, tuple[Prompt, ...]], where: str) -> None:
    for one, other in _APART:
        known = {(prompt.key, prompt.reply) for prompt in sets[one]}
        both = [prompt for prompt in sets[other] if (prompt.key, prompt.reply) in known]
        if both:
            raise DataError(
                f"{where}: {shown(both[0].text)} stands in both {one} and {other} ({len(both)} such in all); keep a prompt in one of them."
            )


def _tell_half_replies(sets: Mapping[SetName, tuple[Prompt, ...]], where: str) -> None:
    """Replies count only where every row of `shows` and `lacks` has one."""
    prompts = sets["shows"] + sets["lacks"]
    without = [prompt for prompt in prompts if prompt.reply is None]
    if 0 < len(without) < len(prompts):
        warn(
            f"{where}: {len(without)} of {len(prompts)} rows in shows and lacks have no reply ({shown(without[0].text)}, for one), so the replies of"
            " the others are not used."
        )
