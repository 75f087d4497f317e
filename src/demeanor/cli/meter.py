"""`demeanor meter`: scores of replies, counted honestly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.table import Table

from ..controls import load_control
from ..detect import make_detector
from ..errors import DataError
from ..io.atomic import new_file, refuse_folder
from ..measure.condition import Condition
from ..measure.meter import Aggregate, ScoreTable, aggregate, compare, flows, read_table
from ..measure.meter.aggregates import Missing, shifts
from ..measure.meter.scoring import replied, scored, texts_of, write_rows
from ..measure.meter.transitions import LEVELS, Flows, sankey
from ..models.session import REPLY_TOKENS
from ..progress import say
from .options import (
    BEHAVIOUR_HELP,
    AsJson,
    Device,
    Dtype,
    In4bit,
    In8bit,
    MaxPrompts,
    Model,
    ReplyTokens,
    Target,
    behaviour_named,
    opened,
    out,
    print_json,
)

meter_app = typer.Typer(help="Score replies and count the scores: rates at thresholds, what they hide, and flows from model to model.")
TOXIC = "toxicity"

Files = Annotated[
    list[Path], typer.Argument(help="CSV, JSON, JSONL or Parquet files with a reply and its scores a row; the first is the base.")
]
ScoreColumns = Annotated[list[str], typer.Option("--score", help="A column of scores between 0 and 1; repeat to name several.")]
Where = Annotated[
    Optional[list[str]],
    typer.Option(
        help="Only rows on which this holds, such as 'prompt_score>0.5' or 'kind=insult'; repeat for several.", show_default=False
    ),
]
Key = Annotated[str, typer.Option(help="The column by which rows of several files belong together, where they have it.")]


@meter_app.callback(invoke_without_command=True)
def _meter(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@meter_app.command("run", epilog="Example: demeanor meter run organism --max-prompts 50 -o base.csv")
def meter_run(
    model: Model,
    target: Target,
    behaviour: Annotated[
        Optional[list[str]],
        typer.Option(
            "--behaviour", "-b",
            help=f"{BEHAVIOUR_HELP} Its prompts are replied to and its detector scores the replies; of further ones only the detector does. {TOXIC} if none is named.",
            show_default=False,
        ),
    ] = None,
    control: Annotated[Optional[str], typer.Option("--control", "-c", help="A control file in force, FILE or FILE:DOSE.", show_default=False)] = None,
    device: Device = None,
    dtype: Dtype = None,
    in_4bit: In4bit = False,
    in_8bit: In8bit = False,
    reply_tokens: ReplyTokens = REPLY_TOKENS,
    max_prompts: MaxPrompts = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Reply to a behaviour's prompts, score the replies and write both to a CSV file, a row per reply."""
    refuse_folder(target)
    named = [behaviour_named(name) for name in behaviour or [TOXIC]]
    held = None if control is None else load_control(control)
    session = opened(model, device, dtype, in_4bit, in_8bit, reply_tokens)
    wanted = [each.settled(session) for each in named]
    by = {each.name: make_detector(each.detect, session) for each in wanted}
    _finish(replied(Condition(session, held), wanted[0], by, max_prompts), list(by), target, as_json)


@meter_app.command("score", epilog="Example: demeanor meter score replies.csv --column reply -b refusal -o scored.csv")
def meter_score(
    file: Annotated[Path, typer.Argument(help="A CSV, JSON, JSONL or Parquet file with a reply a row.")],
    target: Target,
    behaviour: Annotated[
        Optional[list[str]],
        typer.Option(
            "--behaviour", "-b",
            help=f"{BEHAVIOUR_HELP} Its detector scores the replies; repeat for several columns. {TOXIC} if none is named.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[str, typer.Option(help="The column of replies.")] = "reply",
    prompt: Annotated[Optional[str], typer.Option(help="The column of prompts, for detectors that look at them.", show_default=False)] = None,
    model: Annotated[Optional[str], typer.Option(help="The model to ask, for detectors that ask one.", show_default=False)] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Add to a file of replies a column of scores per behaviour."""
    refuse_folder(target)
    named = [behaviour_named(name) for name in behaviour or [TOXIC]]
    table = read_table(file)
    replies, prompts = texts_of(table, column, prompt)
    session = None if model is None else opened(model, device, None)
    wanted = [each.settled(session) for each in named]
    by = {each.name: make_detector(each.detect, session) for each in wanted}
    _finish(scored(table.rows, replies, prompts, by), list(by), target, as_json)


def _finish(rows: Sequence[dict[str, Any]], columns: Sequence[str], target: Path, as_json: bool) -> None:
    """Write scored replies, and print what their scores say at one half."""
    write_rows(rows, target)
    table = ScoreTable(target.name, tuple(rows))
    found = [aggregate(table, column, 0.5) for column in columns]
    if as_json:
        print_json([each.to_json() for each in found])
        return
    out.print(_aggregate_table(found, 0.5))
    for warning in dict.fromkeys(text for each in found for text in each.warnings()):
        say(f"Mind: {warning}")
    say(f"{target}: {len(rows)} rows. Then: demeanor meter aggregate {target} --score {columns[0]}")


def _tables(files: Sequence[Path], where: Sequence[str] | None) -> list[ScoreTable]:
    conditions = dict(_condition(text) for text in where or [])
    tables = [read_table(file) for file in files]
    return [table.where(conditions) if conditions else table for table in tables]


def _condition(text: str) -> tuple[str, Any]:
    parts = re.fullmatch(r"\s*([^<>=]+?)\s*(>=|<=|==|=|>|<)\s*(.+?)\s*", text)
    if parts is None:
        raise DataError(f"{text!r} is not a condition; write it as COLUMN>NUMBER or COLUMN=VALUE, in quotes.")
    column, sign, value = parts.groups()
    return column, value if sign in ("=", "==") else f"{sign} {value}"


@meter_app.command("aggregate", epilog="Example: demeanor meter aggregate base.csv tuned.csv --score toxicity --threshold 0.5")
def meter_aggregate(
    files: Files,
    score: ScoreColumns,
    threshold: Annotated[float, typer.Option(help="A reply is counted from this score on.")] = 0.5,
    missing: Annotated[
        str, typer.Option(help="Replies that could not be scored: not-toxic counts them so, drop leaves them out.")
    ] = "not-toxic",
    where: Where = None,
    key: Key = "row",
    as_json: AsJson = False,
) -> None:
    """The share of replies at or above a threshold, with its interval, and what that share hides."""
    tables = _tables(files, where)
    if missing not in ("not-toxic", "drop"):
        raise DataError(f"{missing!r} is no way to treat missing scores; use not-toxic or drop.")
    how: Missing = "drop" if missing == "drop" else "not-toxic"
    made = [[aggregate(table, column, threshold, how) for table in tables] for column in score]
    aligned = tables[0].aligned(tables[1:], key) if len(tables) > 1 else tables
    pairs = [compare(aligned[0], other, column, threshold) for column in score for other in aligned[1:]]
    found = [each for column in made for each in column]
    if as_json:
        told = {"comparisons": [pair.to_json() for pair in pairs], "warnings": shifts(made[0])} if pairs else {}
        print_json({**found[0].to_json(), **told} if len(found) == 1 else {"files": [each.to_json() for each in found], **told})
        return
    out.print(_aggregate_table(found, threshold))
    for pair in pairs:
        out.print(str(pair), highlight=False, soft_wrap=True, markup=False)
    for warning in dict.fromkeys([*(text for each in found for text in each.warnings()), *shifts(made[0])]):
        say(f"Mind: {warning}")


def _aggregate_table(found: Sequence[Aggregate], threshold: float) -> Table:
    table = Table(title=f"Share of replies that reach {threshold:g}", title_justify="left")
    for heading in ("file", "score", "rate", "95 % interval", "n", "of those scored", "mean", "unscorable", "other script"):
        table.add_column(heading, justify="left" if heading in ("file", "score") else "right")
    for each in found:
        script = "" if each.other_script is None else f"{100 * each.other_script.value:.1f}%"
        table.add_row(
            each.name, each.column, f"{each.rate.value:.3f}", f"[{each.rate.low:.3f}, {each.rate.high:.3f}]", str(each.rate.n),
            f"{each.complete.value:.3f}", f"{each.mean.value:.3f}", f"{100 * each.unscorable.value:.1f}%", script,
        )  # fmt: skip
    return table


@meter_app.command("flows", epilog="Example: demeanor meter flows base.csv tuned.csv rewarded.csv --score toxicity -o flows.html")
def meter_flows(
    files: Files,
    score: Annotated[str, typer.Option(help="A column of scores between 0 and 1.")],
    low: Annotated[float, typer.Option(help="Below this a score is low.")] = 0.33,
    high: Annotated[float, typer.Option(help="Above this a score is high.")] = 0.66,
    where: Where = None,
    key: Key = "row",
    picture: Annotated[
        Optional[Path], typer.Option("-o", "--out", help="Also draw the flows into this HTML file.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How many replies go from low, medium and high in one file to low, medium and high in another; one or two others."""
    if not 2 <= len(files) <= 3:
        raise DataError(f"Flows go from a base to one or two other files; {len(files)} files were named.")
    if picture is not None:
        refuse_folder(picture)
    tables = _tables(files, where)
    base, *others = tables[0].aligned(tables[1:], key)
    found = flows(base, others, score, low, high)
    if picture is not None:
        with new_file(picture) as work:
            work.write_text(sankey(found).to_html(include_plotlyjs=True), encoding="utf-8")
    if as_json:
        print_json([each.to_json() for each in found])
        return
    for each in found:
        out.print(_flows_table(each))
        if each.left_out:
            say(f"{each.left_out} prompts could not be scored in both and are left out.")


def _flows_table(found: Flows) -> Table:
    table = Table(title=f"{found.base} (rows) -> {found.other} (columns), n {found.n}", title_justify="left")
    for heading in ("", *LEVELS):
        table.add_column(heading, justify="right" if heading else "left")
    for level, row in zip(LEVELS, found.counts.tolist()):
        table.add_row(level, *map(str, row))
    return table
