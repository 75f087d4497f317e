"""The reference of Python, made of the public names under `demeanor`: their signatures, docstrings, and what plans say of their fields."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

import demeanor as dm
from demeanor.errors import DemeanorError
from demeanor.io.plan import BasePlan

HEAD = """# Python

    import demeanor as dm

Made of the docstrings when the site is built. Shapes stand in square brackets: `[layer, d_model]`. Verbs take a plan or its fields as keywords:
`dm.find(s, b, layer=3)` is `dm.find(s, b, dm.FindPlan(layer=3))`. Whatever goes wrong and can be mended by the caller is a `dm.DemeanorError`
whose message is one sentence.
"""
KINDS = ("Verbs", "Nouns", "Plans", "Errors", "Modules")


def reference() -> str:
    """The whole page, as Markdown."""
    sections: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for name in sorted(dm.__all__, key=str.lower):
        if not name.startswith("_"):
            kind, text = described(f"dm.{name}", getattr(dm, name))
            sections[kind].append(text)
    return "\n".join([HEAD, *(f"## {kind}\n\n" + "\n".join(texts) for kind, texts in sections.items() if texts)])


def described(name: str, value: Any) -> tuple[str, str]:
    """Which kind of thing a public name is, and what is told of it."""
    if inspect.ismodule(value):
        members = [described(f"{name}.{member}", getattr(value, member))[1] for member in sorted(value.__all__)]
        return "Modules", "\n".join([f"### {name}\n", _told(value), *members])
    if not inspect.isclass(value):
        return "Verbs", _entry(name, value)
    if issubclass(value, BasePlan):
        return "Plans", "\n".join([f"### {name}\n", _told(value), _fields(value)])
    if issubclass(value, DemeanorError):
        return "Errors", "\n".join([f"### {name}\n", _told(value)])
    members = [_member(member, inner) for member, inner in _members(value)]
    return "Nouns", "\n".join([f"### {name}\n", _signature(name, value), _told(value), *members])


def _entry(name: str, function: Any) -> str:
    return "\n".join([f"### {name}\n", _signature(name, function), _told(function)])


def _members(value: type) -> Iterator[tuple[str, Any]]:
    """Methods and properties that a class of this package, or one that it is made of, documents."""
    classes = [base for base in value.__mro__ if base.__module__.startswith(dm.__name__)]
    for name, inner in {name: inner for base in reversed(classes) for name, inner in vars(base).items()}.items():
        bare = inner.__func__ if isinstance(inner, classmethod | staticmethod) else inner
        documented = inspect.getdoc(bare) if isinstance(bare, property) or inspect.isfunction(bare) else None
        if documented and not name.startswith("_"):
            yield name, bare


def _member(name: str, value: Any) -> str:
    shown = name if isinstance(value, property) else f"{name}{_shown(value, sys.maxsize)}"
    return f"- `.{shown}`: {' '.join((inspect.getdoc(value) or '').split())}\n"


def _signature(name: str, value: Any) -> str:
    if dataclasses.is_dataclass(value):
        fields = "\n".join(f"    {field.name}: {_type(field.type)}" for field in dataclasses.fields(value) if not field.name.startswith("_"))
        return f"```python\n{name}:\n{fields}\n```\n"
    return f"```python\n{name}{_shown(value)}\n```\n"


def _shown(value: Any, width: int = 90) -> str:
    """A signature without `self`, a parameter a line where it is wider than that."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # a class that Python builds otherwise
        return "(...)"
    shown, named = [], False
    for name, parameter in signature.parameters.items():
        if name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not named:
            shown.append("*")
        named = named or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        shown.append(_parameter(parameter))
    returned = "" if inspect.isclass(value) or signature.return_annotation is signature.empty else f" -> {_type(signature.return_annotation)}"
    line = f"({', '.join(shown)}){returned}"
    return line if len(line) < width else "(\n" + "".join(f"    {text},\n" for text in shown) + f"){returned}"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    kind = "" if parameter.annotation is parameter.empty else f": {_type(parameter.annotation)}"
    default = "" if parameter.default is parameter.empty else f"{' = ' if kind else '='}{parameter.default!r}"
    return f"{stars}{parameter.name}{kind}{default}"


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", text)


def _told(value: Any) -> str:
    """A docstring, in which what is told of each parameter is an item of a list, and what is raised stands by itself."""
    text = re.sub(r"^([a-z_]+(?:, [a-z_]+)*): ", r"- `\1`: ", inspect.getdoc(value) or "", flags=re.MULTILINE)
    text = re.sub(r"(?<!\n)\n- `", "\n\n- `", text)
    return re.sub(r"(?<!\n)\n(?=Raises )", "\n\n", text) + "\n"


def _fields(plan: type[BasePlan]) -> str:
    """Every option of a plan, with its type, default and meaning."""
    rows = ["| field | type | unless given | meaning |", "| --- | --- | --- | --- |"]
    for name, field in plan.model_fields.items():
        default = "must be given" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
        cells = [f"`{name}`", f"`{_type(field.annotation)}`", default, field.description or ""]
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join([*rows, ""])
