"""A behaviour: what it is called, the prompts that show it, and what tells that it is there.

`behaviour("over-refusal")` is a preset, `behaviour("my.yaml")` a file, `behaviour(question=...)` a
one-liner. The file format is `BehaviourFile`; unknown keys are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from ..errors import DataError
from ..io.registry import file_and_name
from ..io.tables import dataset_rows, read_rows, selected
from ..progress import say
from .prompts import Columns, Prompt, Split, distinct, prompts_from_rows
from .questions import Question, questions_of

SetName = Literal["shows", "lacks", "guard", "neutral"]
SET_NAMES: tuple[SetName, ...] = ("shows", "lacks", "guard", "neutral")


class Source(BaseModel):
    """Where the prompts of a set come from: a file, a data set or a list in place; their columns; which rows are used."""

    model_config = ConfigDict(extra="forbid")
    file: str | None = None
    dataset: str | None = None
    prompts: list[Any] | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    column: str = "prompt"
    answer: str | None = None
    reply: str | None = None
    ask: str | None = None
    system: str | None = None
    system_column: str | None = None
    where: dict[str, Any] = {}
    limit: Annotated[PositiveInt, Field(strict=True)] | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Source:
        if sum(origin is not None for origin in (self.file, self.dataset, self.prompts)) != 1:
            raise ValueError("a set comes from exactly one of file, dataset and prompts")
        if self.dataset is None and {"subset", "split", "revision"} & self.model_fields_set:
            raise ValueError("subset, split and revision belong to a dataset; this set is no dataset")
        if self.ask is not None and (self.reply is None or not self.ask.strip()):
            raise ValueError("ask is the message that replies answer; write one, and name their column with reply")
        if self.ask is not None and "column" in self.model_fields_set:
            raise ValueError("ask stands in place of a column of prompts; leave out one of ask and column")
        return self

    def columns(self) -> Columns:
        return Columns(self.column, self.answer, self.reply, self.system_column, self.ask, self.system)

    def read(self, beside: Path, name: str) -> list[Prompt]:
        """Its prompts, in order; `beside` is the behaviour file, `name` what the set is called in errors."""
        if self.dataset is not None:
            where = f"{self.dataset}, {self.subset}" if self.subset else self.dataset
            rows = dataset_rows(self.dataset, self.subset, self.split, self.revision)
        elif self.file is not None:
            where, rows = str(beside.parent / self.file), read_rows(beside.parent / self.file)
        else:
            where, rows = f"{beside}, {name}", self.prompts or []
        return prompts_from_rows(selected(rows, self.where, self.limit, where), self.columns(), where)


class Detect(BaseModel):
    """The detector by its name (registered, of an installed package, or `path.py:name`), with its arguments."""

    model_config = ConfigDict(extra="allow")
    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class BehaviourFile(BaseModel):
    """The YAML file, as written."""

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    detect: Detect = Detect(name="refusal")
    questions: list[Question] = []
    pairs: bool = False
    shows: list[Source]
    lacks: list[Source]
    guard: list[Source] = []
    neutral: list[Source] = []

    @model_validator(mode="before")
    @classmethod
    def _short_detect(cls, values: Any) -> Any:
        # `detect: refusal` and `detect: {openings: {...}}` are short for `detect: {name: refusal}` and `{name: openings, ...}`.
        if isinstance(values, dict):
            detect = values.get("detect")
            if isinstance(detect, str):
                values = {**values, "detect": {"name": detect}}
            elif isinstance(detect, dict) and "name" not in detect and len(detect) == 1:
                ((name, arguments),) = detect.items()
                if not isinstance(arguments or {}, dict):
                    raise ValueError(f"the arguments of the detector {name!r} must be a mapping, such as {{phrases: [...]}}")
                values = {**values, "detect": {"name": name, **(arguments or {})}}
        return values

    @field_validator("shows", "lacks", "guard", "neutral", mode="before")
    @classmethod
    def _sources(cls, value: Any) -> list[Source]:
        """A set is a source, a list of sources, or a list of prompts in place."""
        if value is None:
            return []
        if isinstance(value, dict):
            return [Source.model_validate(value)]
        if not isinstance(value, list):
            raise ValueError("a set is a list of prompts, or a file as {file: prompts.csv, column: prompt}, or a {dataset: owner/name}")
        if value and all(isinstance(row, dict) and {"file", "dataset", "prompts"} & set(row) for row in value):
            return [Source.model_validate(row) for row in value]
        return [_in_place(value)]


def _in_place(rows: list[Any]) -> Source:
    """A list of prompts: texts, or objects of which not all need have every column."""
    keys = {key for row in rows if isinstance(row, dict) for key in row}
    unknown = sorted(str(key) for key in keys - {"prompt", "answer", "reply", "system"})
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a key of a prompt; the keys are prompt, answer, reply and system")
    columns = {key: key for key in ("answer", "reply") if key in keys} | ({"system_column": "system"} if "system" in keys else {})
    texts = [{"prompt": row} if keys and isinstance(row, str) else row for row in rows]
    return Source(prompts=[{**dict.fromkeys(keys), **row} if isinstance(row, dict) else row for row in texts], **columns)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Behaviour:
    """A name, four prompt sets, a detector and questions. Sets that were not given are empty."""

    name: str
    description: str = ""
    detect: Detect = field(default_factory=lambda: Detect(name="refusal"))
    questions: tuple[Question, ...] = ()
    shows: tuple[Prompt, ...] = ()
    lacks: tuple[Prompt, ...] = ()
    guard: tuple[Prompt, ...] = ()
    neutral: tuple[Prompt, ...] = ()
    pairs: bool = False
    organism: bool | None = None  # of a preset: whether it speaks the embedded model's language

    @property
    def has_replies(self) -> bool:
        """Whether `shows` and `lacks` are texts with and without the behaviour, not prompts that bring it about."""
        return bool(self.shows and self.lacks) and all(prompt.reply is not None for prompt in self.shows + self.lacks)

    def set(self, name: SetName, split: Split | None = None, limit: int | None = None) -> list[Prompt]:
        """One prompt set, or one split of it, at most `limit` prompts: a fair sample of all sources, in order, pairs together."""
        prompts: tuple[Prompt, ...] = {
            "shows": self.shows, "lacks": self.lacks, "guard": self.guard, "neutral": self.neutral,
        }[name]  # fmt: skip
        chosen = [prompt for prompt in prompts if split is None or prompt.split == split]
        if limit is None or limit >= len(chosen):
            return chosen
        # By the hash that made the split, which knows nothing of the order of rows.
        kept = sorted(range(len(chosen)), key=lambda number: (chosen[number].share, number))[:limit]
        return [chosen[number] for number in sorted(kept)]

    def must_fit(self, model: str, organism: bool) -> None:
        """Raises DataError when this is a preset for the embedded model and the model is another, or the other way round."""
        if self.organism is not None and self.organism != organism:
            made = "the embedded model" if self.organism else "other models"
            there = _preset(self.name, organism).is_file()
            instead = f"read it with behaviour({self.name!r}, organism={organism})" if there else "there is none of that name for it"
            raise DataError(f"The preset {self.name!r} was read for {made}, and this is {model}; {instead}.")

    def needs_prompts(self) -> None:
        """Raises DataError when `shows` or `lacks` is missing."""
        for name in ("shows", "lacks"):
            if not getattr(self, name):
                raise DataError(f"The behaviour {self.name!r} has no {name!r} prompts; finding a direction needs both sets.")


PRESETS = Path(str(resources.files(__package__) / "presets"))


def _preset(name: str, organism: bool) -> Path:
    return (PRESETS / "organism" if organism else PRESETS) / f"{name}.yaml"


def presets() -> list[str]:
    """Names of the behaviours that come with the package."""
    return sorted({path.stem for path in PRESETS.rglob("*.yaml")})


def behaviour(source: str | Path | None = None, *, question: str | None = None, organism: bool = True) -> Behaviour:
    """A preset by name, a YAML file by path, or a behaviour that is only a question about the reply (or a preset of
    questions by name), whose detector is the model's own judgement.

    Presets are written twice: in the embedded model's own language, and (`organism=False`) for every other model, on
    public data sets that are fetched by name.
    """
    if (source is None) == (question is None):
        raise DataError("A behaviour is a preset name, a path to a YAML file, or question=...; give exactly one.")
    if question is not None:
        asked = questions_of(question, organism)
        detect = Detect.model_validate({"name": "self", "questions": [each.model_dump() for each in asked]})
        return Behaviour(name=question, detect=detect, questions=asked)
    if str(source) in presets():
        path = _preset(str(source), organism)
        if not path.is_file():
            known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
            raise DataError(
                f"The preset {str(source)!r} has no prompts for {'the embedded model' if organism else 'other models'}; there are {known}."
            )
        return replace(_read(path), organism=organism)
    path = Path(str(source))
    if not path.is_file():
        raise DataError(f"There is no behaviour {str(source)!r}: not a file, and the presets are {', '.join(presets())}.")
    return _read(path)


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which plain YAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.MarkedYAMLError(problem=f"the key {twice!r} is given twice", problem_mark=node.start_mark)
        return dict(super().construct_mapping(node, deep))


def _read(path: Path) -> Behaviour:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        told = " ".join(str(error).split()).replace('in "<unicode string>", ', "")
        raise DataError(f"{path} is not valid YAML: {told} (texts with signs such as ? : # , are written in quotes).") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold a mapping with name, shows and lacks.")
    try:
        file = BehaviourFile.model_validate(values)
    except ValidationError as error:
        raise DataError(f"{path}: {_told(error)}") from error
    rows = {name: [prompt for source in getattr(file, name) for prompt in source.read(path, name)] for name in SET_NAMES}
    sets: dict[SetName, tuple[Prompt, ...]] = {}
    if file.pairs:  # what repeats in one set need not repeat in the other
        sets |= _paired(rows.pop("shows"), rows.pop("lacks"), path)
    sets |= {name: distinct(prompts, f"{path}, {name}") for name, prompts in rows.items()}
    _refuse_overlap(sets, path)
    _tell_half_replies(sets, path)
    return Behaviour(
        file.name, file.description, _beside(file.detect, path), tuple(file.questions), sets["shows"], sets["lacks"], sets["guard"], sets["neutral"],
        file.pairs,
    )  # fmt: skip


def _beside(detect: Detect, path: Path) -> Detect:
    """A detector's `file` is relative to the behaviour file, as the paths of sets are; so is the file of one named `path.py:name`,
    if it lies there."""
    file, in_file = detect.arguments.get("file"), file_and_name(detect.name)
    update = {"file": str(path.parent / file)} if isinstance(file, str) else {}
    if in_file is not None and (path.parent / in_file[0]).is_file():
        update["name"] = str(path.parent / detect.name)
    return detect.model_copy(update=update)


def _paired(shows: list[Prompt], lacks: list[Prompt], path: Path) -> dict[SetName, tuple[Prompt, ...]]:
    """Both sets with the rows of a pair in the same split, every pair once."""
    if len(shows) != len(lacks):
        raise DataError(f"{path}: pairs needs as many rows in lacks as in shows; there are {len(lacks)} and {len(shows)}.")
    both = dict.fromkeys((one, replace(other, pair=one.pair or one.messages)) for one, other in zip(shows, lacks))
    if len(both) < len(shows):
        say(f"{path}: {len(shows) - len(both)} of {len(shows)} pairs repeat another and are counted once.")
    return {"shows": tuple(one for one, _ in both), "lacks": tuple(other for _, other in both)}


def _told(error: ValidationError) -> str:
    """The first thing that is wrong, as a sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        keys: Any = {"detect": Detect, "questions": Question}.get(str(first["loc"][0]), Source if len(first["loc"]) > 1 else BehaviourFile)
        return f"{place!r} is not a key; the keys are {', '.join(keys.model_fields)}."
    message = first["msg"].removeprefix("Value error, ")
    return f"{place + ': ' if place else ''}{message[0].lower()}{message[1:]}."


# Sets that say opposite things of the same prompt.
_APART: tuple[tuple[SetName, SetName], ...] = (("shows", "lacks"), ("shows", "guard"), ("shows", "neutral"), ("lacks", "guard"))


def _refuse_overlap(sets: dict[SetName, tuple[Prompt, ...]], path: Path) -> None:
    for one, other in _APART:
        known = {(prompt.system, prompt.messages, prompt.reply) for prompt in sets[one]}
        both = [prompt for prompt in sets[other] if (prompt.system, prompt.messages, prompt.reply) in known]
        if both:
            raise DataError(
                f"{path}: {both[0].text!r} stands in both {one} and {other} ({len(both)} such in all); keep a prompt in one of them."
            )


def _tell_half_replies(sets: dict[SetName, tuple[Prompt, ...]], path: Path) -> None:
    """Replies count only where every row of `shows` and `lacks` has one."""
    prompts = sets["shows"] + sets["lacks"]
    without = [prompt for prompt in prompts if prompt.reply is None]
    if 0 < len(without) < len(prompts):
        say(
            f"{path}: {len(without)} of {len(prompts)} rows in shows and lacks have no reply ({without[0].text!r}, for one), so the replies of"
            " the others are not used."
        )
