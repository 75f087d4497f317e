"""What is not in plans: where results go and how they are shown. And what commands do with their plans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..io.json_files import json_text
from ..progress import warn
from .terminal import Table, out

if TYPE_CHECKING:
    from ..behaviours import Behaviour, Preset
    from ..models import Loading, Session

AsJson = Annotated[bool, typer.Option("--json", help="JSON for machines instead of a table.")]


def behaviour_named(name: str) -> Behaviour | Preset:
    """A behaviour whose detector is known to exist: mistakes in the file must not wait for the model, which settles a preset."""
    from ..behaviours import behaviour
    from ..detect import check_detector

    named = behaviour(name)
    check_detector(named)
    return named


def opened(model: str, loading: Loading) -> Session:
    """The model that a command names, loaded as its options say."""
    from ..models import load

    warn_if_large(model, loading)
    return load(model, loading=loading, reply_tokens=loading.reply_tokens)  # whose default may be a command's own


def warn_if_large(model: str, loading: Loading) -> None:
    """Says that a model does not fit into memory, before it is loaded, and what can be done with it all the same."""
    from ..models.streamed import larger_than_memory

    large = larger_than_memory(model, loading)
    if large is not None:
        warn(f"{large}, so loading it may fail; find --stream finds directions of it block by block, and bake edits its files.")


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
