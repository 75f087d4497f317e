"""`demeanor run`: the main job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..job.plan import Plan
from ..job.result import Run
from ..job.run import run as run_plan
from .from_model import from_plans
from .options import AsJson, print_json
from .outputs import Output
from .tables import run_table
from .terminal import out, say_result

Folder = Annotated[Path, typer.Option("-o", "--out", help="Run folder that is written; a new one, unless with --force.", show_default=False), Output("folder")]


@from_plans
def run(plan: Plan, folder: Folder, as_json: AsJson = False) -> None:
    """The main job: a behaviour found, controlled, measured both ways, baked and reported."""
    result = run_plan(plan, folder)
    if as_json:
        print_json(json.loads((result.folder / "scores.json").read_text()))
        return
    out.print(run_table(result))
    say_result("\n".join(_sentences(result)))


def _sentences(result: Run) -> list[str]:
    """What the table does not say."""
    sentences = [] if result.behaviour.guard else ["guard: none"]
    sentences += [f"Control: {result.control}.", result.decision.why()]
    if not result.removes:
        sentences.append("This control removes nothing that can be told from chance on the test split; do not use it as if it did.")
    if result.baked is not None and result.parity is not None:
        sentences.append(f"Baked: {result.baked}\nLoaded anew: {result.parity}.")
    if result.dial is not None:
        sentences.append(f"Dial: {result.dial.verdict()}")
    return [*sentences, f"Report: {result.folder / 'report.html'}  ({result.seconds:.0f} s)"]
