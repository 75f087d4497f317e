"""`demeanor dose`: the smallest dose that does enough."""

from __future__ import annotations

from typing import Annotated, Optional

import typer
from rich.table import Table

from ..calibrate.dial import dial as turn_dial
from ..calibrate.dial import doses as spread_doses
from ..calibrate.dose import Dosed, Goal, find_dose
from ..controls import load_control, save_control
from ..errors import DataError
from ..finding.find import search_directions
from ..io.atomic import refuse_folder
from ..models.session import REPLY_TOKENS
from ..progress import say
from ..report.scores import interval, number
from .options import (
    AsJson,
    BehaviourName,
    Device,
    Dtype,
    In4bit,
    In8bit,
    Layer,
    MaxPrompts,
    Model,
    ReplyTokens,
    Target,
    behaviour_named,
    opened,
    out,
    print_json,
)
from .tables import dial_table, measurement_table


def dose(
    model: Model,
    behaviour: BehaviourName,
    target: Target,
    control: Annotated[str, typer.Option("--control", "-c", help="The control file whose dose is looked for.", show_default=False)],
    remove_to: Annotated[
        Optional[float], typer.Option(min=0, max=1, help="The share of shows prompts that may still show it; 0.05 if nothing is said.", show_default=False)
    ] = None,
    induce_to: Annotated[
        Optional[float], typer.Option(min=0, max=1, help="Instead: the share of lacks prompts that must come to show it.", show_default=False)
    ] = None,
    drift_cap: Annotated[float, typer.Option(min=0, help="How far ordinary replies may drift, in nats per token.")] = 0.5,
    device: Device = None,
    dtype: Dtype = None,
    in_4bit: In4bit = False,
    in_8bit: In8bit = False,
    reply_tokens: ReplyTokens = REPLY_TOKENS,
    max_prompts: MaxPrompts = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Find the smallest dose of a control that reaches a rate (on val), measure it once (on test) and write it."""
    refuse_folder(target)
    if remove_to is not None and induce_to is not None:
        raise DataError("A dose removes or induces; give one of --remove-to and --induce-to.")
    goal: Goal = "remove" if induce_to is None else "induce"
    named, held = behaviour_named(behaviour), load_control(control)
    session = opened(model, device, dtype, in_4bit, in_8bit, reply_tokens)
    wanted = named.settled(session)
    rate = remove_to if induce_to is None else induce_to
    found = find_dose(session, wanted, held, goal, rate=rate, drift_cap=drift_cap, max_prompts=max_prompts)
    save_control(found.control, target)
    if as_json:
        print_json(found.to_json())
        return
    out.print(_trials_table(found))
    out.print(measurement_table(found.measurement, f"{wanted.name} in {model}: test split, dose {found.dose:g}"))
    out.print(str(found), highlight=False, soft_wrap=True)
    say(f"{target}: {found.control}.")


def _trials_table(found: Dosed) -> Table:
    """What was tried on val, by dose."""
    table = Table(title="Doses tried (val)", title_justify="left")
    for heading in ("dose", "rate", "95 % interval", "neutral: right answers", "drift (nats/token)"):
        table.add_column(heading, justify="right")
    for trial in sorted(found.trials, key=lambda trial: trial.dose):
        answers = number(trial.answers.name, trial.answers.value) if trial.answers.n else "none"
        table.add_row(
            f"{trial.dose:g}", number(trial.rate.name, trial.rate.value), interval(trial.rate), answers, f"{trial.drift.value:.4f}",
            style="bold" if trial.dose == found.dose else "",
        )  # fmt: skip
    return table


def dial(
    model: Model,
    behaviour: BehaviourName,
    target: Target,
    doses: Annotated[
        int, typer.Option(min=3, max=41, help="How many doses to measure, from -1 to +1; an odd number, so that 0 is among them.")
    ] = 9,
    layer: Layer = None,
    device: Device = None,
    dtype: Dtype = None,
    in_4bit: In4bit = False,
    in_8bit: In8bit = False,
    reply_tokens: ReplyTokens = REPLY_TOKENS,
    max_prompts: MaxPrompts = None,
    as_json: AsJson = False,
) -> None:
    """Make a dial that turns a behaviour from removed (-1) to induced (+1), and measure it; use it as FILE:DOSE."""
    refuse_folder(target)
    at = spread_doses(doses)
    named = behaviour_named(behaviour)
    named.needs_prompts()
    session = opened(model, device, dtype, in_4bit, in_8bit, reply_tokens)
    wanted = named.settled(session)
    found = search_directions(session, wanted, layer=layer, max_prompts=max_prompts)
    made = turn_dial(session, wanted, found, at, max_prompts)
    save_control(made.control, target)
    if as_json:
        print_json(made.to_json())
        return
    out.print(dial_table(made, f"{wanted.name} in {model}: test split, {made.direction.site}"))
    out.print(f"{made.verdict()}\nUse it as {target}:DOSE, such as --control {target}:-0.5.", highlight=False, soft_wrap=True)
