"""`demeanor search`: the best trade-offs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..errors import CheckFailed
from ..report.sentence import in_words
from ..search.plan import SearchPlan
from ..search.reproducing import reproduce as search_again
from ..search.searching import RESULT, told
from ..search.searching import search as search_plan
from .from_model import PlanOf, from_plans, read_required
from .options import AsJson, print_json
from .run import Folder
from .search_tables import front_table
from .sessions import warn_if_large
from .tables import measurement_table
from .terminal import out, say_result

Earlier = Annotated[
    Optional[Path],
    typer.Option(
        "--reproduce", help=f"Folder of an earlier search, or its {RESULT}, that is done again; what differs is said.", callback=read_required, is_eager=True, show_default=False
    ),
    PlanOf(),
]  # fmt: skip


@from_plans
def search(plan: SearchPlan, folder: Folder, reproduce: Earlier = None, as_json: AsJson = False) -> None:
    """The best trade-offs between what is removed, what the guard keeps and how far the model drifts; one of them measured."""
    warn_if_large(plan.model, plan.loading)
    result, differs = (search_plan(plan, folder), []) if reproduce is None else search_again(reproduce, folder, plan)
    if as_json:
        print_json(json.loads((result.folder / RESULT).read_text(encoding="utf-8")) | ({} if reproduce is None else {"differs": differs}))
        return
    say_result("\n".join(in_words(result.measurement, result.behaviour)))
    out.print(front_table(result))
    out.print(measurement_table(result.measurement, f"{plan.model}, {result.behaviour.name}: test split, before and after the picked point", costs=False))
    say_result("\n".join([*told(result), f"Report: {result.folder / 'report.html'}  ({result.seconds:.0f} s)"]))
    if differs:
        raise CheckFailed(f"The search is not what {reproduce} was. {' '.join(differs)} The new one is in {folder}.")
    if reproduce is not None:
        say_result(f"The search is what {reproduce} was: the same trials, the same front, the same scores.")
