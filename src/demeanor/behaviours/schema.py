"""The behaviour file, as it is written: `BehaviourFile`, the sources of its prompt sets, its detector. Unknown keys are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, field_validator, model_validator

from ..io.row_files import read_rows
from ..io.tables import dataset_rows, selected
from .prompts import Columns, Prompt, prompts_from_rows
from .questions import Question


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
        return Columns(
            prompt=self.column, answer=self.answer, reply=self.reply, system=self.system_column, ask=self.ask, every_system=self.system
        )

    def read(self, folder: Path, where: str) -> list[Prompt]:
        """Its prompts, in order; a path is relative to `folder`, and `where` is what a list in place is called in errors."""
        if self.dataset is not None:
            where = f"{self.dataset}, {self.subset}" if self.subset else self.dataset
            rows = dataset_rows(self.dataset, self.subset, self.split, self.revision)
        elif self.file is not None:
            where, rows = str(folder / self.file), read_rows(folder / self.file)
        else:
            rows = self.prompts or []
        return prompts_from_rows(selected(rows, self.where, self.limit, where), self.columns(), where)


def _sources(value: Any) -> list[Source]:
    """A set is a source, a list of sources, or a list of prompts in place."""
    if value is None:
        return []
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, dict):
        return [Source.model_validate(value)]
    if not isinstance(value, list):
        raise ValueError("a set is a list of prompts, or a file as {file: prompts.csv, column: prompt}, or a {dataset: owner/name}")
    if value and all(isinstance(row, dict) and {"file", "dataset", "prompts"} & set(row) for row in value):
        return [Source.model_validate(row) for row in value]
    return [_in_place(value)]


Sources = Annotated[list[Source], BeforeValidator(_sources)]


class RobustSources(BaseModel):
    """Where the prompts of a robust set come from: those that must go on showing the behaviour, those that should not, or both."""

    model_config = ConfigDict(extra="forbid")
    guard: Sources = []
    shows: Sources = []

    @model_validator(mode="before")
    @classmethod
    def _either(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not any(value.values()):
            raise ValueError("a robust set is a mapping with guard, shows or both, such as {guard: {file: prompts.csv}}")
        return value


class Detect(BaseModel):
    """The detector by its name (registered, of an installed package, or `path.py:name`), with its arguments."""

    model_config = ConfigDict(extra="allow")
    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Words(BaseModel):
    """How results are told: what the prompts of `shows` and of `guard` are, what a reply that shows the behaviour is
    said to be, and what people who rate replies blind are asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    shows: Annotated[str, Field(min_length=1)] = "prompts of shows"
    guard: Annotated[str, Field(min_length=1)] = "guard prompts"
    shown: Annotated[str, Field(min_length=1)] = "showing it"
    ask: Annotated[str, Field(min_length=1)] | None = None


TAKEN = ("rate", "robust")  # of `guard_rate` and `guard_robust`, which no robust set may be


class BehaviourFile(BaseModel):
    """The YAML file, as written."""

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    detect: Detect = Detect(name="refusal")
    questions: list[Question] = []
    words: Words = Words()
    pairs: bool = False
    shows: Sources = []
    lacks: Sources = []
    guard: Sources = []
    neutral: Sources = []
    robust: dict[str, RobustSources] = {}

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

    @field_validator("robust", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """Names become those of scores: `guard_NAME` and `shows_NAME`."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise ValueError("its sets have names, such as {german: {guard: {file: german.csv}}}")
        wrong = next((name for name in value if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*", name)), None)
        if wrong is not None:
            raise ValueError(f"{wrong!r} is no name of a robust set; use letters, digits, - and _ (in quotes where YAML would read something else)")
        taken = next((name for name in value if name in TAKEN), None)
        if taken is not None:
            raise ValueError(f"{taken!r} is taken by other scores; call the robust set otherwise")
        return value


def _in_place(rows: list[Any]) -> Source:
    """A list of prompts: texts, objects of which not all need have every column, or prompts as they are."""
    keys = {key for row in rows if isinstance(row, dict) for key in row}
    unknown = sorted(str(key) for key in keys - {"prompt", "answer", "reply", "system"})
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a key of a prompt; the keys are prompt, answer, reply and system")
    columns = {key: key for key in ("answer", "reply") if key in keys} | ({"system_column": "system"} if "system" in keys else {})
    texts = [{"prompt": row} if keys and isinstance(row, str) else row for row in rows]
    return Source(prompts=[{**dict.fromkeys(keys), **row} if isinstance(row, dict) else row for row in texts], **columns)  # type: ignore[arg-type]
