"""A run that outlives a kill: its journal lies in a hidden folder beside the target, and the same command goes on from it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DataError, DemeanorError, WorkersLost
from ..io.journal import Journal
from ..io.plan import PLAN, BasePlan
from ..models import Session
from ..progress import say
from ..version import __version__


def running_folder(out: Path) -> Path:
    """Where a run towards `out` keeps what it has."""
    return out.parent / f".{out.name}.running"


def refuse_other_plan(plan: BasePlan, out: Path) -> None:
    """Raises DataError where a run with other options was begun towards the same folder and not finished."""
    folder = running_folder(out)
    if (folder / PLAN).is_file() and not plan.same_as(folder / PLAN):
        raise DataError(
            f"Another run towards {out} was begun and not finished ({folder / PLAN}); give the options it was given, or remove {folder}."
        )


@contextmanager
def resumable(plan: BasePlan, session: Session, out: Path) -> Iterator[Journal]:
    """The journal of a run. What was kept of the same plan, model and version is recalled; the folder goes when the run ends.

    It stays where the run is interrupted or killed, since the same command then goes on.
    """
    folder = running_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLAN).write_text(plan.written(), encoding="utf-8")
    journal = Journal(folder / f"{__version__}-{session.layout.hash}.jsonl")
    if len(journal):
        say(f"This run was begun before; it goes on from {len(journal)} results in {folder}.")
    try:
        yield journal
    except (KeyboardInterrupt, SystemExit, WorkersLost):
        say(f"The same command goes on from here; {folder} holds what was computed.")
        raise
    except DemeanorError:  # the same command would end in the same sentence
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)
