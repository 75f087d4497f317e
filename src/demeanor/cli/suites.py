"""What `measure --suite` asks for, and its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..errors import DataError
from ..measure.condition import Condition
from ..measure.suites import NAMED, Change, Suite, compare_suites, load_suites
from ..progress import say
from .options import given, out
from .tables import suites_table

SuiteNames = Annotated[
    Optional[list[str]],
    typer.Option(
        "--suite",
        help=f"Also measure capability by lm-eval (the extra eval): a task, group or tag of its, a task's YAML file, or {', '.join(NAMED)}; repeat for several.",
        show_default=False,
    ),
]
SuiteLimit = Annotated[Optional[int], typer.Option(min=1, help="At most this many questions of each task, its first.", show_default=False)]
SuiteFolder = Annotated[Optional[Path], typer.Option(help="A folder with YAML files of your own tasks.", show_default=False)]
SuiteChat = Annotated[bool, typer.Option("--suite-chat", help="Put the questions through the model's chat template.")]


@dataclass(frozen=True)
class Suites:
    """What was asked for, with the tasks loaded: a mistake in a name must not wait for the model."""

    suites: Sequence[Suite]
    limit: int | None
    chat: bool

    def compare(self, was: Condition, conditions: Mapping[str, Condition]) -> dict[str, dict[str, list[Change]]]:
        always = {name: condition for name, condition in conditions.items() if condition.redo is None}
        if len(always) < len(conditions):
            say(f"Suites score answers, not replies, so {len(conditions) - len(always)} controls on second thoughts are left out of them.")
        return compare_suites(was, always, self.suites, self.limit, self.chat)

    def show(self, changes: Mapping[str, Mapping[str, Sequence[Change]]], title: str) -> None:
        for suite in self.suites:
            out.print(suites_table(suite, {name: made[suite.name] for name, made in changes.items()}, f"{title}: {suite.name}"))


def suites_asked(context: typer.Context, names: Sequence[str] | None, limit: int | None, folder: Path | None, chat: bool) -> Suites | None:
    """The suites of a command line, or None."""
    if not names:
        useless = given(context, "suite_limit", "suite_folder", "suite_chat")
        if useless:
            raise DataError(f"{useless[0]} does nothing without --suite NAME; add that, or leave it out.")
        return None
    return Suites(load_suites(names, include=folder), limit, chat)


def to_json(changes: Mapping[str, Sequence[Change]]) -> dict[str, Any]:
    """Every metric of every suite."""
    return {suite: [change.to_json() for change in made] for suite, made in changes.items()}
