"""What is not in plans: where results go and how they are shown."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..io.json_files import json_text
from .terminal import Table, out

AsJson = Annotated[bool, typer.Option("--json", help="JSON for machines instead of a table.")]


def help_alone(context: typer.Context) -> None:
    """A group of commands without a command prints its help."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def print_json(values: Any) -> None:
    print(json_text(values))


def show(facts: dict[str, Any], title: str, as_json: bool) -> None:
    """Facts as a table of two columns, or as JSON."""
    if as_json:
        print_json(facts)
        return
    table = Table(title=title, title_justify="left", show_header=False)
    for key, value in facts.items():
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    out.print(table)
