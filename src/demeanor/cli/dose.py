"""`demeanor dose`: the smallest dose that does enough."""

from __future__ import annotations

from typing import Annotated, Optional

import typer
from rich.table import Table

from ..controls import load_control, save_control
from ..dose import Dosed, Goal, find_dose
from ..errors import DataError
from ..models.session import REPLY_TOKENS
from ..progress import say
from ..report.table import interval, measurement_table, number
from ..writing import refuse_folder
from .options import (
    AsJson,
    BehaviourName,
    Device,
    Dtype,
    In4bit,
    In8bit,
    MaxPrompts,
    Model,
    ReplyTokens,
    Target,
    behaviour_for,
    opened,
    out,
    print_json,
)


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
    wanted, held = behaviour_for(behaviour, model), load_control(control)
    session = opened(model, device, dtype, in_4bit, in_8bit, reply_tokens)
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
