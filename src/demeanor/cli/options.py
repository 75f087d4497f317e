"""Options that several commands share, and what commands do with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table

from ..behaviours import Behaviour
from ..behaviours import behaviour as read_behaviour
from ..controls import Control
from ..detect import make_detector
from ..errors import DataError
from ..finding.gates import gate as make_gate
from ..models import Quantized, Session, is_organism, load
from ..models.session import REPLY_TOKENS

out = Console()

MODEL_HELP = "organism, a model folder, a PEFT adapter folder, or a Hub id (owner/model, owner/model@revision)."
Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
BEHAVIOUR_HELP = "A preset (over-refusal, refusal, toxicity, cheer, gloom) or the path of a behaviour file."
BehaviourName = Annotated[str, typer.Option("--behaviour", "-b", help=BEHAVIOUR_HELP, show_default=False)]
Device = Annotated[Optional[str], typer.Option(help="cpu, cuda, ...; the GPU when there is one.", show_default=False)]
Dtype = Annotated[Optional[str], typer.Option(help="float32, bfloat16, ...; as stored.", show_default=False)]
In4bit = Annotated[bool, typer.Option("--load-in-4bit", help="Hold the linear weights in 4 bits (bitsandbytes; the extra quant).")]
In8bit = Annotated[bool, typer.Option("--load-in-8bit", help="Hold the linear weights in 8 bits (bitsandbytes; the extra quant).")]
ReplyTokens = Annotated[int, typer.Option(min=1, help="How long a reply may get that is judged; models that think need hundreds.")]
MaxPrompts = Annotated[
    Optional[int], typer.Option(min=1, help="Use at most this many prompts of each split of each set.", show_default=False)
]
Layer = Annotated[Optional[int], typer.Option(help="Look for the direction in this layer only.", show_default=False)]
RankByOption = Annotated[
    Optional[str],
    typer.Option(
        help="Rank directions by bypass (least left when ablated), induce (most at dose +1) or gap (means furthest apart: the plainest baseline).",
        show_default=False,
    ),
]  # fmt: skip
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]
Target = Annotated[Path, typer.Option("-o", "--out", help="Where to write the result.", show_default=False)]
Controls = Annotated[
    Optional[list[str]],
    typer.Option("--control", "-c", help="A control file, FILE or FILE:DOSE; repeat to name several.", show_default=False),
]
DirectionFile = Annotated[Path, typer.Argument(help="A direction file, from find.")]
FalsePositives = Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of guard prompts the gate may let through.")]
GateBehaviour = Annotated[
    Optional[str],
    typer.Option(
        help="Act only on prompts like those of this behaviour's shows set, not its guard set (needs --model).", show_default=False
    ),
]
GateModel = Annotated[Optional[str], typer.Option(help="The model that a gate is fitted on.", show_default=False)]


def behaviour_for(name: str, model: str) -> Behaviour:
    """A behaviour for a model, whose detector is known to exist: mistakes in the file must not wait for the model."""
    wanted = read_behaviour(name, organism=is_organism(model))
    make_detector(wanted.detect)
    return wanted


def quantized_as(in_4bit: bool, in_8bit: bool) -> Quantized | None:
    """How a model's weights are to be held."""
    if in_4bit and in_8bit:
        raise DataError("A model is held in 4 or in 8 bits; give one of --load-in-4bit and --load-in-8bit.")
    return "4bit" if in_4bit else "8bit" if in_8bit else None


def opened(
    model: str, device: str | None, dtype: str | None, in_4bit: bool = False, in_8bit: bool = False, reply_tokens: int = REPLY_TOKENS
) -> Session:
    """The model that a command names, loaded as its options say."""
    quantized_as(in_4bit, in_8bit)
    return load(model, device=device, dtype=dtype, load_in_4bit=in_4bit, load_in_8bit=in_8bit, reply_tokens=reply_tokens)


def given(context: typer.Context, *names: str) -> list[str]:
    """Which of these options stand on the command line."""
    return [f"--{name.replace('_', '-')}" for name in names if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]


def gated(context: typer.Context, control: Control, name: str | None, model: str | None, false_positives: float) -> Control:
    """The control behind a gate, where one was asked for."""
    if name is None:
        useless = given(context, "model", "false_positives")
        if useless:
            raise DataError(f"{useless[0]} does nothing without --gate BEHAVIOUR; add that, or leave it out.")
        return control
    if model is None:
        raise DataError("--gate fits a probe on a model; name it with --model.")
    return control.when(make_gate(load(model), behaviour_for(name, model), false_positives=false_positives))


def print_json(values: Any) -> None:
    print(json.dumps(values, indent=2))


def show(facts: dict[str, Any], title: str, as_json: bool) -> None:
    """Facts as a table of two columns, or as JSON."""
    if as_json:
        print_json(facts)
        return
    table = Table(title=title, title_justify="left", show_header=False)
    for key, value in facts.items():
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    out.print(table)
