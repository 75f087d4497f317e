"""What `measure --suite` asks for, and its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..measure.condition import Condition
from ..measure.plan import SuitePlan
from ..measure.suites import Change, Suite, compare_suites, load_suites
from ..progress import say
from .tables import suites_table
from .terminal import out


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
            columns = {name: by_suite[suite.name] for name, by_suite in changes.items()}
            out.print(suites_table(suite, columns, f"{title}: {suite.name}"))


def suites_asked(plan: SuitePlan) -> Suites | None:
    """The suites of a plan, or None."""
    if not plan.suites:
        return None
    return Suites(load_suites(plan.suites, include=plan.suite_folder), plan.suite_limit, plan.suite_chat)


def to_json(changes: Mapping[str, Sequence[Change]]) -> dict[str, Any]:
    """Every metric of every suite."""
    return {suite: [change.to_json() for change in metrics] for suite, metrics in changes.items()}
