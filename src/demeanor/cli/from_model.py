"""Options from plans: what a command may be told is what the fields of its plans say, with their help texts, bounds and defaults.

A command's function names plans as its parameters and receives them whole. `--plan FILE` fills them from YAML instead.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin

import typer
from annotated_types import Ge, Le
from pydantic.fields import FieldInfo
from rich.markup import escape

from ..errors import DataError
from ..io.plan import BasePlan, Flag, read_from, read_values, unknown_option
from ..io.yaml_files import read_yaml
from ..models import Loading, SpreadLoading
from .outputs import claiming

PANELS: Mapping[type[BasePlan], str] = {Loading: "Loading the model", SpreadLoading: "Workers"}
FILE, CONTEXT = "plan_file", "context"  # parameters of every command that has plans


class PlanOf:
    """Marks a parameter of a command that names an earlier result, whose plan is used."""


def from_plans(function: Callable[..., None]) -> Callable[..., None]:
    """A command for Typer: every parameter of `function` that is a plan becomes the options of that plan."""
    claims = claiming(function)
    parameters = list(inspect.signature(claims, eval_str=True).parameters.values())
    plans = {p.name: p.annotation for p in parameters if isinstance(p.annotation, type) and issubclass(p.annotation, BasePlan)}
    fields = _fields(list(plans.values()))
    earlier = [p.name for p in parameters if any(isinstance(mark, PlanOf) for mark in get_args(p.annotation)[1:])]
    flags = {name: _positional(field) or _flags(name, field)[0] for name, field in fields.items()}

    @functools.wraps(function)
    def command(**values: Any) -> None:
        context, file = values.pop(CONTEXT), values.pop(FILE)
        file = file or next((values[name] for name in earlier if values[name] is not None), None)
        typed = {name: values.pop(name) for name in fields}
        given = [name for name in fields if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
        chosen = {name: _value(fields[name], typed[name]) for name in given} if file is None else _replayed(file, fields, flags, given)
        for parameter, plan in plans.items():
            own = {name: chosen[name] for name in plan.model_fields if name in chosen}
            values[parameter] = plan.of(own, str(file or ""), {} if file else flags)
        claims(**values, **({} if file is None or claims is function else {"reads": read_from(file)}))

    options = [_parameter(name, field, _panel(name, plans.values())) for name, field in fields.items()]
    others = [p for p in parameters if p.name not in plans]
    added = [_keyword(CONTEXT, typer.Context, inspect.Parameter.empty), _keyword(FILE, PlanFile, None)]
    signature = inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in [*options, *others, *added]])
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return command


def _fields(plans: Sequence[type[BasePlan]]) -> dict[str, FieldInfo]:
    """The fields of some plans by name: what must be given first, and what a plan says itself before what it inherits."""
    fields = {
        name: plan.model_fields[name]
        for plan in plans
        for base in plan.__mro__
        for name in inspect.get_annotations(base)
        if name in plan.model_fields
    }
    return dict(sorted(fields.items(), key=lambda item: not item[1].is_required()))


def read_required(context: typer.Context, file: Path | None) -> Path | None:
    """What must be given may be given by the file."""
    if file is not None:
        context.default_map = {p.name: read_values(file).get(p.name) for p in context.command.params if p.required and p.name}
    return file


PlanFile = Annotated[
    Optional[Path],
    typer.Option(
        "--plan", help="YAML file (or run folder) with these options, in place of them.", callback=read_required, is_eager=True, show_default=False
    ),
]  # fmt: skip


def _replayed(file: Path, fields: Mapping[str, FieldInfo], flags: Mapping[str, str], given: Sequence[str]) -> dict[str, Any]:
    """The options of a plan file; DataError where others are given beside it or one of them is none of the command's."""
    if given:
        raise DataError(f"--plan replays a command as it was; leave out {flags[given[0]]}, or change it in a copy of the plan file.")
    values = read_values(file)
    unknown = next((name for name in values if name not in fields), None)
    if unknown is not None:
        raise DataError(f"{file}: {unknown_option(unknown, list(fields))}")
    return values


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameter(name: str, field: FieldInfo, panel: str | None) -> inspect.Parameter:
    """A field as Typer's parameter."""
    kind, default = _kind(field), _default(field)
    about: dict[str, Any] = {
        "help": _sentence(field.description or ""),
        "show_default": not any(default is nothing for nothing in (None, False, inspect.Parameter.empty)),
    }
    if kind == list[str]:
        about["metavar"] = "<key=value>" if get_origin(field.annotation) is dict else f"<{_items(field)}>"
    elif kind in (int, float):
        about |= {"min": _bound(field, Ge, "ge"), "max": _bound(field, Le, "le")}
    positional = _positional(field)
    info = (
        typer.Option(*_flags(name, field), rich_help_panel=panel, **about)
        if positional is None
        else typer.Argument(metavar=positional, **about)
    )
    return _keyword(name, Annotated[Optional[kind] if default is None else kind, info], default)


def _kind(field: FieldInfo) -> Any:
    """What Typer reads: a field of several types is read as text, which the plan makes something of."""
    union = get_origin(field.annotation) in (Union, UnionType)
    kinds = [kind for kind in get_args(field.annotation) if kind is not NoneType] if union else [field.annotation]
    if len(kinds) > 1:
        return str
    return list[str] if get_origin(kinds[0]) in (tuple, dict) else kinds[0]


def _items(field: FieldInfo) -> str:
    """What each item of a field of several may be."""
    item = get_args(field.annotation)[0]
    return "|".join(get_args(item)) if get_origin(item) is Literal else "str"


def _default(field: FieldInfo) -> Any:
    if field.is_required():
        return inspect.Parameter.empty
    default = field.get_default(call_default_factory=True)
    return (list(default) or None) if isinstance(default, (tuple, dict)) else default


def _bound(field: FieldInfo, kind: type[Ge] | type[Le], name: str) -> float | None:
    return next((getattr(bound, name) for bound in field.metadata if isinstance(bound, kind)), None)


def _flags(name: str, field: FieldInfo) -> tuple[str, ...]:
    named = next((flag.names for flag in field.metadata if isinstance(flag, Flag) and flag.names), None)
    single = name.removesuffix("s") if get_origin(field.annotation) is dict else name
    return named or (f"--{single.replace('_', '-')}",)


def _positional(field: FieldInfo) -> str | None:
    return next((flag.positional for flag in field.metadata if isinstance(flag, Flag)), None)


def _panel(name: str, plans: Any) -> str | None:
    """The title over an option: of the plan that it comes from."""
    return next((PANELS.get(base) for plan in plans for base in plan.__mro__ if base in PANELS and name in base.model_fields), None)


def _sentence(text: str) -> str:
    return escape(f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}")


def _value(field: FieldInfo, given: Any) -> Any:
    """What stands on the command line, as the plan takes it: KEY=VALUE pairs become a mapping, their values read as YAML."""
    if get_origin(field.annotation) is not dict:
        return given
    pairs = [text.partition("=") for text in given]
    wrong = next((key for key, sign, _ in pairs if not sign or not key), None)
    if wrong is not None:
        raise DataError(f"{wrong!r} is no KEY=VALUE; write it so, such as enable_thinking=false.")
    try:
        return {key: read_yaml(value) for key, _, value in pairs}
    except ValueError as error:
        raise DataError(f"The value in {' '.join(given)} is not valid YAML: {error}.") from error
