"""Plans: what a verb depends on, as asked for. Frozen, checked, and written as YAML.

Python, a YAML file and the command line fill the same plan, so a mistake is told in the same sentence everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import DataError
from .claims import refuse_output
from .display import shown
from .yaml_files import read_yaml

PLAN = "plan.yaml"  # in the folder of a run or a training
NAMED = re.compile(r"`(\w+)`")  # a field in the message of a validator


# Options that may name files and folders: FILE, FILE:DOSE or FILE:WEIGHT, FILE.py:NAME; or something else, such as a preset.
PLACES = frozenset({
    "model", "base", "behaviour", "behaviours", "control", "controls", "direction", "towards", "first", "second", "check", "gate", "like", "unlike",
    "file", "pairs", "data", "dialogues", "estimators", "embedder", "suites", "suite_folder", "prompts", "redo_if", "reward",
    "moderate", "api_keys", "edited", "place",
})  # fmt: skip
EMBEDDED = "organism"  # a name that never is a folder


@dataclass(frozen=True)
class Flag:
    """How a field is called on the command line, where that is not its own name; `positional` fields stand there without a flag."""

    names: tuple[str, ...] = ()
    positional: str | None = None


class BasePlan(BaseModel):
    """The base of every plan: its fields are the options of a verb. Raises DataError, in one sentence, for values that are none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    if not TYPE_CHECKING:  # a type checker reads the fields instead

        def __init__(self, **values: Any) -> None:
            self._fill(values, type(self).__name__, {})

    def _fill(self, values: Mapping[str, Any], where: str, names: Mapping[str, str]) -> None:
        try:
            BaseModel.__init__(self, **values)
        except ValidationError as error:
            raise DataError(_sentence(error, where, names, list(type(self).model_fields))) from error

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str = "the plan", names: Mapping[str, str] | None = None) -> Self:
        """A plan from its values. An error names `where` they come from, and fields as `names` calls them there."""
        plan = cls.__new__(cls)
        plan._fill(values, where, names or {})
        return plan

    @classmethod
    def given(cls, plan: Self | None, options: Mapping[str, Any], verb: str) -> Self:
        """The plan that a Python verb was called with, or one made of the keywords it was called with."""
        if plan is None:
            return cls.of(options, verb)
        if not isinstance(plan, cls):
            raise DataError(f"{verb} takes a {cls.__name__} or keywords, not {type(plan).__name__} {str(plan)[:40]!r}.")
        if options:
            raise DataError(f"{verb} takes a plan or keywords; leave out {next(iter(options))}, or put it in the plan.")
        return plan

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """The plan in a YAML file, or in the folder of a run that holds one."""
        return cls.of(read_values(path), str(path))

    def written(self, *others: BasePlan) -> str:
        """The plan as YAML, which gives the same plan when it is read, from whatever folder; with `others` that one command takes beside it."""
        values = {name: value for plan in (self, *others) for name, value in plan.model_dump(mode="json").items()}
        placed = {name: _placed(value) if name in PLACES else value for name, value in values.items()}
        return yaml.safe_dump(placed, sort_keys=False, allow_unicode=True)

    def same_as(self, file: Path) -> bool:
        return file.read_text(encoding="utf-8") == self.written()


def _placed(value: Any) -> Any:
    """Where what is named lies, whatever the current folder will be; what names no file or folder stays as it is."""
    if isinstance(value, list):
        return [_placed(item) for item in value]
    if not isinstance(value, str):
        return value
    head, colon, rest = value.rpartition(":")
    if colon and not _lies(value) and _lies(head):
        return f"{Path(head).absolute()}:{rest}"
    return str(Path(value).absolute()) if _lies(value) else value


def _lies(name: str) -> bool:
    """Whether a name is that of a file or folder here. A bare word is one only where it is a folder: others are presets and the like."""
    path = Path(name)
    try:
        return name != EMBEDDED and path.exists() and (path.is_dir() or len(path.parts) > 1 or bool(path.suffix))
    except (OSError, ValueError):  # a text that is too long for a name, or holds what no name can
        return False


def read_from(path: Path) -> Path:
    """The plan file that a path stands for: itself, or the one in the folder of a run."""
    return path / PLAN if path.is_dir() else path


def read_values(path: Path) -> dict[str, Any]:
    """The options in a YAML file; the folder of a run stands for the plan in it. DataError where it holds none."""
    file = read_from(path)
    refuse_output(file)
    try:
        values = read_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"The plan file {file} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise DataError(f"{file} is not valid YAML: {error}.") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise DataError(f"{file} holds no options; write one a line, as NAME: VALUE.")
    return values["plan"] if isinstance(values.get("plan"), dict) else values  # a result that holds its plan stands for it


def unknown_option(name: str, known: list[str]) -> str:
    """What to say of an option that is none, with the one that was probably meant."""
    meant = get_close_matches(name, known, 1)
    return f"there is no option {name!r}; " + (f"did you mean {meant[0]}?" if meant else f"the options are {', '.join(known)}.")


def _sentence(error: ValidationError, where: str, names: Mapping[str, str], known: list[str]) -> str:
    """The first thing that is wrong, in one sentence."""
    errors = error.errors()
    first = next((mistake for mistake in errors if mistake["type"] == "extra_forbidden"), errors[0])  # a typo is why another is missing
    place = names.get(str(first["loc"][0]), str(first["loc"][0])) if first["loc"] else ""
    message = first["msg"].removeprefix("Value error, ").removesuffix(".")
    if first["type"] == "extra_forbidden":
        wrong = unknown_option(place, known).removesuffix(".")
    elif first["type"] == "missing":
        wrong = f"{place} is missing; give it"
    elif message.startswith("Input should"):
        wrong = f"{place} {message.removeprefix('Input ')}, not {shown(first['input'], 40)}"
    else:
        message = NAMED.sub(lambda name: names.get(name[1], name[1]), message)
        wrong = f"{place}{': ' if place else ''}{message[0].lower()}{message[1:]}"
    return f"{where}{': ' if where else ''}{wrong}{'' if wrong.endswith('?') else '.'}"
