"""`demeanor check` and `demeanor init`: a behaviour file looked at, and one begun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ..behaviours.starter import ANSWERS, Answers, behaviour_text
from ..detect import make_detector
from ..errors import CheckFailed
from ..finding.examine import Examined, examine
from ..finding.plan import CheckPlan
from ..io.atomic import new_file
from ..measure.observation import Outcome
from ..models import Loading
from .from_model import from_plans
from .options import AsJson, print_json
from .outputs import Output, claiming
from .sessions import behaviour_named, opened
from .terminal import Table, out, say_result

REPLIES = 2  # of each set, shown


@from_plans
def check(plan: CheckPlan, loading: Loading, as_json: AsJson = False) -> None:
    """A behaviour looked at before any work: its sets, its detector, and what a model says to some of its prompts."""
    named = behaviour_named(plan.behaviour)
    session = None if plan.model is None else opened(plan.model, loading)
    settled = named.settled(session)
    make_detector(settled.detect, session)
    examined = examine(settled, session, plan.per_set)
    if as_json:
        print_json(examined.to_json())
    else:
        _show(examined)
    if examined.problems:
        raise CheckFailed(f"{plan.behaviour} is not ready: {examined.problems[0]}")


def _show(examined: Examined) -> None:
    table = Table(title=f"{examined.behaviour.name}, judged by {examined.behaviour.detect.name}", title_justify="left")
    for heading in ("", "prompts", "train", "val", "test", "known answers", "replies", "asked", "shown"):
        table.add_column(heading, justify="right" if heading else "left")
    for one in examined.sets:
        asked = (str(one.asked), str(one.shown)) if one.asked else ("", "")
        table.add_row(one.name, *(str(count or "none") for count in (one.prompts, *one.splits.values(), one.answers, one.replies)), *asked)
    out.print(table)
    if examined.robust:
        sets = "; ".join(f"{one.name} {one.prompts}" for one in examined.robust)
        say_result(f"Robust sets, which are only measured, whole (measure --robust): {sets}.")
    if examined.observed is not None:
        out.print(_replies([outcome for outcomes in examined.observed.sets.values() for outcome in outcomes[:REPLIES]]))
    for sentence in (*examined.remarks, *examined.problems[1:]):
        say_result(sentence)
    if not examined.problems:
        say_result("Ready: find, run and measure can use it.")


def _replies(outcomes: list[Outcome]) -> Table:
    table = Table(title="What the model says, and whether the detector sees the behaviour in it", title_justify="left")
    for heading in ("prompt", "reply", "seen"):
        table.add_column(heading)
    for outcome in outcomes:
        table.add_row(outcome.prompt.text[:80], outcome.reply.text[:160], "yes" if outcome.shown else "no")
    return table


@claiming
def init(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="Behaviour file that is written."), Output("file")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Take every usual answer instead of asking.")] = False,
) -> None:
    """A commented behaviour file from a few questions."""
    ask: Callable[[str, str], str] = (lambda question, usual: usual) if yes else _ask
    text = behaviour_text(Answers(**{key: ask(question, usual) for key, question, usual in ANSWERS}))
    with new_file(target) as file:
        file.write_text(text, encoding="utf-8")
    say_result(f"{target} is written; put your prompts where it says, then: demeanor check {target}")


def _ask(question: str, usual: str) -> str:
    return str(typer.prompt(question, default=usual, err=True))
