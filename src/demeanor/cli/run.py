"""`demeanor run`: the main job."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..job.plan import Plan
from ..job.result import Run
from ..job.run import BAKEABLE
from ..job.run import run as run_plan
from ..report.sentence import in_words
from .from_model import from_plans
from .options import AsJson, print_json
from .outputs import Output
from .sessions import warn_if_large
from .tables import run_table
from .terminal import out, say_result

Folder = Annotated[Path, typer.Option("-o", "--out", help="Run folder that is written; a new one, unless with --force.", show_default=False), Output("folder")]


@from_plans
def run(plan: Plan, folder: Folder, as_json: AsJson = False) -> None:
    """The main job: a behaviour found, controlled, measured both ways, baked and reported."""
    warn_if_large(plan.model, plan.loading)
    result = run_plan(plan, folder)
    if as_json:
        print_json(json.loads((result.folder / "scores.json").read_text()))
        return
    say_result("\n".join(in_words(result.measurement, result.behaviour)))
    out.print(run_table(result))
    say_result("\n".join(sentences_of(result)))


def sentences_of(result: Run) -> list[str]:
    """What neither the first sentences nor the table say, and what to do next."""
    sentences = [f"Control: {result.control}; made of {result.decision.chosen.proposal}.", result.decision.why()]
    if not result.removes:
        sentences.append("This control removes nothing that can be told from chance on the test split; do not use it as if it did.")
    sentences += _about_weights(result)
    if result.dial is not None:
        sentences.append(f"Dial: {result.dial.verdict()}")
    return [*sentences, f"Report: {result.folder / 'report.html'}  ({result.seconds:.0f} s)", "Next:", *next_commands(result)]


def _about_weights(result: Run) -> list[str]:
    """What is in the weights, or why nothing is and what can be done about it."""
    if result.baked is not None and result.parity is not None:
        learned = "" if result.permanent is None else f"An adapter learned to do by itself what the control does: {result.folder / 'permanent'}.\n"
        return [f"{learned}Baked: {result.baked}\nLoaded anew: {result.parity}."]
    if result.not_baked is not None:
        return []  # told when it happened
    sentences = [f"Not in the weights: {result.control.bakeable()}."]
    if result.bakeable is not None:
        was, now = result.bakeable.before["guard_rate"], result.bakeable.after["guard_rate"]
        guard = f"; it takes the guard from {100 * was.value:.0f} % to {100 * now.value:.0f} %" if now.n else ""
        sentences.append(f"The best control that weights can do exactly is {result.folder / BAKEABLE}, measured above{guard}.")
    return sentences


def next_commands(result: Run) -> list[str]:
    """Commands that go on from this run, as they can be typed."""
    model, behaviour, folder = (shlex.quote(str(name)) for name in (result.plan.model, result.plan.behaviour, result.folder))
    commands = [f"demeanor chat {model} -c {folder}", f"demeanor measure {model} -b {behaviour} -c {folder}"]
    if result.baked is not None:
        commands.append(f"demeanor chat {shlex.quote(str(result.baked.folder))}")
    else:
        commands.append(f"demeanor train prefix {model} -b {behaviour} --from {folder} -o {folder}-permanent   (or run with --permanent)")
    return [f"  {command}" for command in commands]
