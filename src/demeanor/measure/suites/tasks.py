"""Tasks of lm-eval by name: found, loaded with their data, and refused in one sentence where they cannot be.

lm-eval is an extra, so it is imported only inside functions.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from jinja2 import TemplateError

from ...errors import DataError
from ...io.tables import muted_datasets
from ...progress import muted, say
from .names import NAMED

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager


@dataclass(frozen=True)
class Suite:
    """Loaded tasks under the name that was asked for; `listed` are the tasks and groups it names, in order."""

    name: str
    listed: tuple[str, ...]
    tasks: Mapping[str, Task]
    groups: Mapping[str, Group]


def load_suites(names: Sequence[str], include: str | Path | None = None, fewshot: int | None = None) -> list[Suite]:
    """Suites of that name (`names.NAMED`), lm-eval's own tasks, groups and tags, tasks in the folder `include`, or YAML files.

    fewshot: how many examples every task gets that does not rule them out, instead of its own number.
    Raises DataError for a name that lm-eval does not know and for data that cannot be had.
    """
    if isinstance(names, str):
        raise DataError("Suites are a list of names; put the one name in a list.")
    if find_spec("lm_eval") is None:
        raise DataError("Measuring capability by suites takes the extra `eval`: pip install 'demeanor[eval]'.")
    if include is not None and not Path(include).is_dir():
        raise DataError(f"{include} is not a folder; name the one that holds the YAML files of your tasks.")
    with quiet():
        manager = _manager(None if include is None else str(include))
        parts_of = {name: NAMED.get(name, {name: None}) for name in names}
        for name in parts_of:
            _refuse_unknown(name, manager)
        return [_loaded(manager, name, parts, fewshot) for name, parts in parts_of.items()]


@cache
def _manager(include: str | None) -> TaskManager:
    """lm-eval's index of tasks, which takes seconds to make."""
    from lm_eval.tasks import TaskManager

    say("Reading lm-eval's index of tasks.")
    return TaskManager(include_path=include)


def _refuse_unknown(name: str, manager: TaskManager) -> None:
    if name in NAMED or name in manager.task_index or (name.endswith((".yaml", ".yml")) and Path(name).is_file()):
        return
    near = get_close_matches(name, [*NAMED, *manager.all_tasks], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the suites are {', '.join(NAMED)}."
    raise DataError(f"lm-eval has no task, group or suite {name!r}; {hint}")


def _loaded(manager: TaskManager, name: str, parts: Mapping[str, int | None], fewshot: int | None) -> Suite:
    tasks: dict[str, Task] = {}
    groups: dict[str, Group] = {}
    listed: list[str] = []
    for part, shots in parts.items():
        loaded = _fetched(manager, part)
        for task in loaded["tasks"].values():
            _refuse(task)
            _give_examples(task, shots if fewshot is None else fewshot)
        tasks |= loaded["tasks"]
        groups |= loaded.get("groups", {})
        within = {child for group in loaded.get("groups", {}).values() for child in group.child_names}
        listed += [known for known in (*loaded.get("groups", {}), *loaded["tasks"]) if known not in within]
    return Suite(name, tuple(listed), tasks, groups)


def _fetched(manager: TaskManager, name: str) -> Any:
    """Tasks and groups of that name, with their data."""
    from datasets.exceptions import DatasetsError

    with seeded():  # some tasks shuffle their questions while they are loaded
        try:
            return manager.load([name])
        except ImportError as error:
            raise DataError(f"The task {name} takes another package: {_short(error)}.") from error
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, yaml.YAMLError, TemplateError, DatasetsError) as error:
            raise DataError(
                f"The task {name} or its data could not be read: {_short(error)}; data is fetched once, with the network, and kept."
            ) from error


def _refuse(task: Task) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise DataError(f"The task {task.task_name} runs code that the model writes, which is not done here; leave it out.")
    if getattr(task, "MULTIMODAL", False):
        raise DataError(f"The task {task.task_name} shows pictures or plays sounds; leave it out.")


def _give_examples(task: Task, shots: int | None) -> None:
    """As lm-eval does it: a task that says 0 itself keeps that."""
    own = task.get_config("num_fewshot")
    if own is None or (own != 0 and shots is not None):
        task.set_config(key="num_fewshot", value=shots or 0)


def _short(error: Exception) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return (" ".join(str(text).split())[:300] or type(error).__name__).rstrip(".")


@contextmanager
def seeded() -> Iterator[None]:
    """lm-eval's own seeds, and afterwards the state from before."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    plain, numpy = random.getstate(), np.random.get_state()
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    try:
        yield
    finally:
        random.setstate(plain)
        np.random.set_state(numpy)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' remarks and bars; what matters of them is told in sentences. What some tasks print goes to
    standard error, since standard output belongs to results."""
    with muted_datasets(), muted("lm_eval"), redirect_stdout(sys.stderr):
        yield
