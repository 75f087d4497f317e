"""The reference of the command line, made of the commands themselves: what they say of themselves, and what their plans say of every option."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from typer.main import get_command

from demeanor.cli import app

HEAD = """# Command line

Made of the commands themselves when the site is built, so it says what `demeanor COMMAND --help` says. MODEL is `organism`, a folder, a Hub id,
an adapter folder or a GGUF file. Exit codes: 0 done, 1 a check failed, 2 a mistake in the input.
"""
EVERYWHERE = ("Loading the model",)  # panels that are shown once
NAMES = {int: "whole number", float: "number", Path: "path"}


def reference() -> str:
    """The whole page, as Markdown."""
    root: Any = get_command(app)
    named = list(every_command(root))
    shared = {option.name: option for _, command in named for option in command.params if getattr(option, "rich_help_panel", None) in EVERYWHERE}
    parts = [HEAD, *(_section(name, command) for name, command in named), "## Loading the model\n", "Every command that takes a model takes these.\n"]
    return "\n".join([*parts, _table(shared.values())])


def every_command(group: Any, before: str = "demeanor") -> Iterator[tuple[str, Any]]:
    """Every command that does something, by all of its words."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from every_command(command, f"{before} {name}")
        else:
            yield f"{before} {name}", command


def _section(name: str, command: Any) -> str:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    words = " ".join(_bracketed(param.metavar or param.name.upper(), param.required) for param in arguments)
    own = [param for param in command.params if getattr(param, "rich_help_panel", None) not in EVERYWHERE and "--help" not in param.opts]
    loads = any(getattr(param, "rich_help_panel", None) in EVERYWHERE for param in command.params)
    parts = [f"## {name}\n", f"{_plain(command.help or '')}\n", f"```text\n{name} {words} [OPTIONS]\n```\n", _table(own)]
    if loads:
        parts.append("And the options of [loading the model](#loading-the-model).\n")
    if command.epilog:
        parts.append(f"{_plain(command.epilog).replace('Example: ', 'Example: `', 1)}`\n")
    return "\n".join(parts)


def _table(params: Any) -> str:
    rows = [_row(param) for param in params]
    return "\n".join(["| option | value | meaning |", "| --- | --- | --- |", *rows, ""]) if rows else ""


def _row(param: Any) -> str:
    argument = param.param_type_name == "argument"
    names = f"`{param.metavar or param.name.upper()}`" if argument else ", ".join(f"`{name}`" for name in param.opts)
    value = "" if argument or getattr(param, "is_flag", False) else _cell(_kind(param))
    default = "" if not getattr(param, "show_default", False) or param.default in (None, False) else f" Unless given: `{param.default}`."
    needed = " Must be given." if param.required and not argument else ""
    return f"| {names} | {value} | {_cell(_plain(getattr(param, 'help', '') or ''))}{needed}{_cell(default)} |"


def _kind(param: Any) -> str:
    """What an option takes, in words."""
    kind = param.type_descriptor.annotation  # of the version of Typer that is tested
    items = get_args(kind) if get_origin(kind) is not Literal else ()
    kind = next((item for item in items if item is not NoneType), kind)
    words = param.metavar.strip("<>") if param.metavar else ", ".join(map(str, get_args(kind))) or NAMES.get(kind, "text")
    least, most = ("" if bound is None else f"{word} {bound}" for word, bound in (("from", param.min), ("to", param.max)))
    return " ".join(filter(None, (words, least, most, "(repeated for several)" if param.multiple else "")))


def _bracketed(name: str, required: bool) -> str:
    return name if required else f"[{name}]"


def _plain(text: str) -> str:
    """Without the marks that the terminal's text has for brackets and bold."""
    return re.sub(r"\\\[", "[", re.sub(r"\[/?bold\]", "", text))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;").replace("*", "\\*")
