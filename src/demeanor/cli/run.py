"""The commands, one function each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..errors import DataError
from ..job.plan import Plan
from ..job.run import run as run_plan
from ..models.session import REPLY_TOKENS
from .options import (
    BEHAVIOUR_HELP,
    MODEL_HELP,
    AsJson,
    Device,
    Dtype,
    FalsePositives,
    In4bit,
    In8bit,
    Layer,
    MaxPrompts,
    RankByOption,
    ReplyTokens,
    given,
    out,
    print_json,
    quantized_as,  # fmt: skip
)
from .tables import run_table


def run(
    context: typer.Context,
    model: Annotated[Optional[str], typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)] = None,
    behaviour: Annotated[Optional[str], typer.Option("--behaviour", "-b", help=BEHAVIOUR_HELP, show_default=False)] = None,
    folder: Annotated[
        Optional[Path], typer.Option("-o", "--out", help="The run folder to write; must not exist.", show_default=False)
    ] = None,
    layer: Layer = None,
    rank_by: RankByOption = None,
    doses: Annotated[int, typer.Option(help="How many doses of the dial to measure: an odd number up to 41, or 0 for none.")] = 9,
    false_positives: FalsePositives = 0.05,
    plan: Annotated[Optional[Path], typer.Option(help="Replay the plan.yaml of an earlier run.", show_default=False)] = None,
    device: Device = None,
    dtype: Dtype = None,
    in_4bit: In4bit = False,
    in_8bit: In8bit = False,
    reply_tokens: ReplyTokens = REPLY_TOKENS,
    max_prompts: MaxPrompts = None,
    as_json: AsJson = False,
) -> None:
    """The main job: find a behaviour, control it, measure both directions, bake, report."""
    if folder is None:
        raise DataError("The run needs a folder to write to; name a new one with -o.")
    if plan is not None:
        others = [name for name in context.params if name not in ("plan", "folder", "as_json")]
        useless = given(context, *others)
        if useless:
            raise DataError(f"--plan replays a run as it was; leave out {useless[0]}, or change it in a copy of the plan file.")
        wanted = Plan.from_file(plan)
    else:
        if model is None or behaviour is None:
            raise DataError(
                "A run needs MODEL and --behaviour (or --plan FILE); try: demeanor run organism --behaviour over-refusal -o RUN."
            )
        values = {
            "model": model, "behaviour": behaviour, "layer": layer, "rank_by": rank_by, "doses": doses, "false_positives": false_positives,
            "max_prompts": max_prompts, "device": device, "dtype": dtype, "quantized": quantized_as(in_4bit, in_8bit), "reply_tokens": reply_tokens,
        }  # fmt: skip
        wanted = Plan.of(values, "the command line")
    result = run_plan(wanted, folder)
    if as_json:
        print_json(json.loads((result.folder / "scores.json").read_text()))
        return
    out.print(run_table(result))
    if not result.behaviour.guard:
        out.print("guard: none", highlight=False)
    told = [f"Control: {result.control}.", result.decision.why()]
    if not result.removes:
        told.append("This control removes nothing that can be told from chance on the test split; do not use it as if it did.")
    if result.baked is not None and result.parity is not None:
        told.append(f"Baked: {result.baked}\nLoaded anew: {result.parity}.")
    if result.dial is not None:
        told.append(f"Dial: {result.dial.verdict()}")
    told.append(f"Report: {result.folder / 'report.html'}  ({result.seconds:.0f} s)")
    out.print("\n".join(told), highlight=False, soft_wrap=True)
