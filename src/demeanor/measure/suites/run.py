"""Suites run on a session, with whatever controls are in force, and conditions compared on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from ...errors import DataError
from ...models import Session
from ...progress import track, warn
from ..condition import Condition
from .scores import Change, TaskScore, direction, headline, is_mean, pooled
from .tasks import Suite, load_suites, quiet, seeded


def suite(
    session: Session,
    names: Sequence[str],
    limit: int | None = None,
    include: str | Path | None = None,
    fewshot: int | None = None,
    chat: bool = False,
) -> list[TaskScore]:
    """Every metric of lm-eval's tasks, groups or named suites, for a session and whatever controls are in force.

    limit: at most so many questions of each task, its first. include: a folder with YAML files of more tasks.
    fewshot: see `load_suites`. chat: questions come through the chat template, as lm-eval does it when asked to.
    Raises DataError for unknown names, data that cannot be had, or where the extra `eval` is not installed.
    """
    return [score for one in load_suites(names, include, fewshot) for score in run_suite(Condition(session), one, limit, chat)]


def compare_suites(
    was: Condition, conditions: Mapping[str, Condition], suites: Sequence[Suite], limit: int | None = None, chat: bool = False
) -> dict[str, dict[str, list[Change]]]:
    """Changes of every metric by condition and suite; the condition before is asked once."""
    said: set[str] = set()
    changes: dict[str, dict[str, list[Change]]] = {name: {} for name in conditions}
    for one in suites:
        before = run_suite(was, one, limit, chat, said)
        for name, now in conditions.items():
            after = run_suite(now, one, limit, chat, said) if now != was else before
            changes[name][one.name] = [Change(*pair) for pair in zip(before, after, strict=True)]
    return changes


def run_suite(
    condition: Condition, suite: Suite, limit: int | None = None, chat: bool = False, said: set[str] | None = None
) -> list[TaskScore]:
    """Every metric of a suite's groups and tasks. `told` holds what was said already."""
    from lm_eval.evaluator import evaluate

    from .adapter import SessionLM

    said = set() if said is None else said
    model = SessionLM(condition.session, chat, said)
    for task in suite.tasks.values():
        task.set_fewshot_seed(1234)  # lm-eval's own; anew, so that everyone gets the same examples
    loaded: Any = {"tasks": dict(suite.tasks), "groups": dict(suite.groups)}
    with quiet(), seeded(), _own_bars(), condition.acting():
        try:
            results: Any = evaluate(
                model, loaded, limit=limit, bootstrap_iters=0, system_instruction=condition.prompting,
                apply_chat_template=chat, fewshot_as_multiturn=chat,
            )  # fmt: skip
        except (TemplateError, ValueError, LookupError) as error:
            raise DataError(f"The suite {suite.name} cannot be run: {' '.join(str(error).split())[:300].rstrip('.')}.") from error
    for task_name, count in model.shortened.items():
        sentence = f"{task_name}: {count} questions are longer than the {model.max_length} tokens that {condition.session.name} takes; their beginning was left out."
        if count and sentence not in said:
            said.add(sentence)
            warn(sentence)
    scores = [score for name in suite.tasks for score in _scores(name, suite.tasks[name], results)]
    return [*_of_groups(suite, scores), *scores]


def listed(suite: Suite, names: Iterable[str]) -> list[str]:
    """What a table shows of a suite: the groups and tasks it names; of groups without a score, their members."""
    known, shown = set(names), []
    waiting = list(suite.listed)
    while waiting:
        name = waiting.pop(0)
        if name in known:
            shown.append(name)
        elif name in suite.groups:
            waiting = [*suite.groups[name].child_names, *waiting]
    return shown


def headlines(suite: Suite, changes: Sequence[Change]) -> list[Change]:
    """One change for each row of a table."""
    by_name: dict[str, list[Change]] = {}
    for change in changes:
        by_name.setdefault(change.after.task, []).append(change)
    rows = []
    for name in listed(suite, by_name):
        main = headline([change.after for change in by_name[name]])
        rows.append(next(change for change in by_name[name] if change.after is main))
    return rows


def _scores(name: str, task: Any, results: Any) -> list[TaskScore]:
    """A task's metrics, in lm-eval's order."""
    scores = []
    for key, value in results["results"][name].items():
        metric, _, kind = key.partition(",")
        if not kind or metric.endswith("_stderr"):
            continue
        samples = tuple(row[metric] for row in results["samples"][name] if row["filter"] == kind and metric in row)
        whole = None if is_mean(samples, value) else task.aggregation()[metric]
        better = direction(task.higher_is_better().get(metric))
        scores.append(
            TaskScore(
                task=name, metric=metric, filter=kind, shots=task.get_config("num_fewshot"), better=better, samples=samples, whole=whole
            )
        )
    return scores


def _of_groups(suite: Suite, scores: Sequence[TaskScore]) -> list[TaskScore]:
    """What groups say of themselves: means over their tasks, where they ask for any."""
    aggregates = []
    for name, group in suite.groups.items():
        within = {task.task_name for task in group.get_all_tasks()}
        for aggregation in group.aggregate_metric_list or []:
            members = [s for s in scores if s.task in within and s.metric == aggregation.metric and s.whole is None]
            for kind in dict.fromkeys(score.filter for score in members):
                if aggregation.filter_list is None or kind in aggregation.filter_list:
                    aggregates.append(pooled(name, [score for score in members if score.filter == kind], bool(aggregation.weight_by_size)))
    return aggregates


@contextmanager
def _own_bars() -> Iterator[None]:
    """lm-eval's one bar, while questions are put together, as ours: it appears only when it takes long."""
    from lm_eval.api import task as tasks

    theirs = tasks.tqdm
    tasks.tqdm = lambda items, total: track(items, "Putting questions together", total)
    try:
        yield
    finally:
        tasks.tqdm = theirs
