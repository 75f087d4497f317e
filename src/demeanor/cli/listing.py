"""The commands by name, read from the sources of their modules: a list of them needs no model library, and a command is imported when it is run."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from importlib import import_module, resources
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from ..progress import say
from .starting import at_once

COMPLETING = "_DEMEANOR_COMPLETE"  # set by a shell that completes what is being typed
HEAVY = "torch"  # where it has been imported, a command's module is there in a moment


@dataclass(frozen=True)
class Listed:
    """A command: the module of this package that holds it, and an example for its help. A `group` is the module's `NAME_app`."""

    module: str
    epilog: str = ""
    group: bool = False


class Loaded(MutableMapping[str, Any]):
    """Commands by name, each imported when it is asked for; or those of a group, whose module is."""

    def __init__(self, listed: dict[str, Listed]) -> None:
        self.listed = listed
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = load_command(name, self.listed[name])
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name], self.listed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.listed)

    def __len__(self) -> int:
        return len(self.listed)


class Commands(TyperGroup):
    """The commands of `root.COMMANDS`: listed from their sources, imported when one of them is run."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """What is known of a command without importing it: its name and the sentence about it."""
        listed = self.commands.listed.get(cmd_name) if isinstance(self.commands, Loaded) else None
        if listed is None:
            return super().get_command(ctx, cmd_name)
        if listed.group:
            return _group(cmd_name, listed)
        return TyperCommand(cmd_name, help=_about(listed.module)[cmd_name])

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: Any) -> Any:
        if isinstance(self.commands, Loaded):
            return super().invoke(ctx)
        print(ctx.get_help())  # a group that was named alone

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name is None or (isinstance(command, Commands) and _asks_for_help(rest)):
            return name, command, rest
        return name, self.commands[name], rest


def load_command(name: str, listed: Listed) -> Any:
    """A command, or a whole group, as Typer makes it of its module."""
    if HEAVY not in sys.modules and COMPLETING not in os.environ:
        say("Loading the libraries.")
    with at_once():
        module = import_module(f".{listed.module}", __package__)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    app.callback()(lambda: None)  # a group, though it holds one command
    if listed.group:
        app.add_typer(getattr(module, f"{name}_app"), name=name)
    else:
        app.command(name, epilog=listed.epilog)(getattr(module, name))
    return get_command(app).commands[name]  # type: ignore[attr-defined]


def _asks_for_help(arguments: list[str]) -> bool:
    """Whether a group is to list its commands, and nothing more."""
    return not arguments or arguments[0] in ("--help", "-h")


def _group(name: str, listed: Listed) -> Commands:
    """A group that can list its commands."""
    about = _about(listed.module)
    commands: dict[str, Any] = {command: TyperCommand(command, help=text) for command, text in about.items() if command}
    return Commands(name=name, commands=commands, help=about[""], invoke_without_command=True, rich_markup_mode="rich")


def _about(module: str) -> dict[str, str]:
    """What the source of a module says of its commands, by name; of its group under the empty name."""
    tree = ast.parse((resources.files(__package__) / f"{module}.py").read_text(encoding="utf-8"))
    about: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            about[_typed(node) or node.name] = ast.get_docstring(node) or ""
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "typer.Typer":
            about[""] = next(ast.literal_eval(keyword.value) for keyword in node.value.keywords if keyword.arg == "help")
    grouped = {_typed(node) for node in tree.body if isinstance(node, ast.FunctionDef)} - {None}
    return {name: text for name, text in about.items() if not grouped or not name or name in grouped}


def _typed(function: ast.FunctionDef) -> str | None:
    """The name that a decorator such as `@control_app.command("ablate")` gives a function."""
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith("_app.command"):
            return str(ast.literal_eval(decorator.args[0]))
    return None
