"""A behaviour: what it is called, the prompts that show it, and what tells that it is there.

`behaviour("over-refusal")` is a preset, `behaviour("my.yaml")` a file, `behaviour(question=...)` a
one-liner. The file format is `BehaviourFile`; unknown keys are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from ..errors import DataError
from .prompts import Columns, Prompt, Split, prompts_from_rows, read_prompts

SetName = Literal["shows", "lacks", "guard", "neutral"]
SET_NAMES: tuple[SetName, ...] = ("shows", "lacks", "guard", "neutral")


class Source(BaseModel):
    """A prompt file and its columns."""

    model_config = ConfigDict(extra="forbid")
    file: str
    column: str = "prompt"
    answer: str | None = None
    reply: str | None = None
    system: str | None = None

    def columns(self) -> Columns:
        return Columns(self.column, self.answer, self.reply, self.system)


class Question(BaseModel):
    """A question about a reply, with the answer that means the behaviour is wanted."""

    model_config = ConfigDict(extra="forbid")
    ask: str
    want: Literal["yes", "no"] = "yes"
    weight: float = 1.0

    @field_validator("want", mode="before")
    @classmethod
    def _yaml_booleans(cls, value: Any) -> Any:
        # YAML reads a bare yes or no as a boolean.
        return {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value


class Detect(BaseModel):
    """The detector by its registered name, with its arguments."""

    model_config = ConfigDict(extra="allow")
    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class BehaviourFile(BaseModel):
    """The YAML file, as written."""

    model_config = ConfigDict(extra="forbid")
    name: str
    description: str = ""
    detect: Detect = Detect(name="refusal")
    questions: list[Question] = []
    shows: Source | list[Any]
    lacks: Source | list[Any]
    guard: Source | list[Any] | None = None
    neutral: Source | list[Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_detect(cls, values: Any) -> Any:
        # `detect: refusal` and `detect: {refusal: {...}}` are short for `detect: {name: refusal, ...}`.
        if isinstance(values, dict):
            detect = values.get("detect")
            if isinstance(detect, str):
                values = {**values, "detect": {"name": detect}}
            elif isinstance(detect, dict) and "name" not in detect and len(detect) == 1:
                ((name, arguments),) = detect.items()
                if not isinstance(arguments or {}, dict):
                    raise ValueError(f"the arguments of the detector {name!r} must be a mapping, such as {{openings: [...]}}")
                values = {**values, "detect": {"name": name, **(arguments or {})}}
        return values

    @field_validator("shows", "lacks", "guard", "neutral", mode="before")
    @classmethod
    def _list_or_file(cls, value: Any) -> Any:
        if value is not None and not isinstance(value, (list, dict)):
            raise ValueError("a set is a list of prompts, or a file as {file: prompts.csv, column: prompt}")
        return Source.model_validate(value) if isinstance(value, dict) else value


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

    def set(self, name: SetName, split: Split | None = None, limit: int | None = None) -> list[Prompt]:
        """One prompt set, or one split of it, at most `limit` prompts (the first of the file)."""
        prompts: tuple[Prompt, ...] = {
            "shows": self.shows, "lacks": self.lacks, "guard": self.guard, "neutral": self.neutral,
        }[name]  # fmt: skip
        return [prompt for prompt in prompts if split is None or prompt.split == split][:limit]

    def needs_prompts(self) -> None:
        """Raises DataError when `shows` or `lacks` is missing."""
        for name in ("shows", "lacks"):
            if not getattr(self, name):
                raise DataError(f"The behaviour {self.name!r} has no {name!r} prompts; finding a direction needs both sets.")


def presets() -> list[str]:
    """Names of the behaviours that come with the package."""
    folder = resources.files(__package__) / "presets"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def behaviour(source: str | Path | None = None, *, question: str | None = None) -> Behaviour:
    """A preset by name, a YAML file by path, or a behaviour that is only a question about the reply."""
    if (source is None) == (question is None):
        raise DataError("A behaviour is a preset name, a path to a YAML file, or question=...; give exactly one.")
    if question is not None:
        return Behaviour(name=question, questions=(Question(ask=question),))
    path = Path(str(source))
    if str(source) in presets():
        path = Path(str(resources.files(__package__) / "presets" / f"{source}.yaml"))
    elif not path.is_file():
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
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold a mapping with name, shows and lacks.")
    try:
        file = BehaviourFile.model_validate(values)
    except ValidationError as error:
        raise DataError(f"{path}: {_told(error)}") from error
    sets = {name: _load_set(getattr(file, name), path, name) for name in SET_NAMES}
    _refuse_overlap(sets, path)
    return Behaviour(file.name, file.description, file.detect, tuple(file.questions), **sets)


def _told(error: ValidationError) -> str:
    """The first thing that is wrong, as a sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        keys: Any = {"detect": Detect, "questions": Question}.get(str(first["loc"][0]), Source if len(first["loc"]) > 1 else BehaviourFile)
        return f"{place!r} is not a key; the keys are {', '.join(keys.model_fields)}."
    message = first["msg"].removeprefix("Value error, ")
    return f"{place + ': ' if place else ''}{message[0].lower()}{message[1:]}."


def _load_set(source: Source | list[Any] | None, path: Path, name: str) -> tuple[Prompt, ...]:
    if source is None:
        return ()
    if isinstance(source, Source):
        return tuple(read_prompts(path.parent / source.file, source.columns()))
    keys = {key for row in source if isinstance(row, dict) for key in row}
    unknown = sorted(str(key) for key in keys - {"prompt", "answer", "reply", "system"})
    if unknown:
        raise DataError(f"{path}, {name}: {unknown[0]!r} is not a key of a prompt; the keys are prompt, answer, reply and system.")
    columns = Columns(**{key: key for key in ("answer", "reply", "system") if key in keys})
    # Inline rows need not all have every column.
    rows = [{**dict.fromkeys(keys), **row} if isinstance(row, dict) else row for row in source]
    return tuple(prompts_from_rows(rows, columns, f"{path}, {name}"))


# Sets that say opposite things of the same prompt.
_APART: tuple[tuple[SetName, SetName], ...] = (("shows", "lacks"), ("shows", "guard"), ("shows", "neutral"), ("lacks", "guard"))


def _refuse_overlap(sets: dict[SetName, tuple[Prompt, ...]], path: Path) -> None:
    for one, other in _APART:
        known = {(prompt.system, prompt.messages) for prompt in sets[one]}
        both = [prompt for prompt in sets[other] if (prompt.system, prompt.messages) in known]
        if both:
            raise DataError(
                f"{path}: {both[0].text!r} stands in both {one} and {other} ({len(both)} such in all); keep a prompt in one of them."
            )
