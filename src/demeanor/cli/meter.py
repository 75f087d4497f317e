"""`demeanor meter`: scores of replies, counted honestly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from ..behaviours import detect_of, presets
from ..controls import load_control
from ..detect import make_detector
from ..errors import DataError
from ..io.atomic import new_file
from ..io.display import table_html
from ..measure.condition import Condition
from ..measure.meter import Flows, ScoreTable, aggregate, compare, flows, read_table
from ..measure.meter.aggregates import shifts
from ..measure.meter.plan import ReplyPlan, ScorePlan
from ..measure.meter.scoring import replied, scored, texts_of, write_rows
from ..measure.meter.transitions import LEVELS, sankey
from ..models import Loading, SpreadLoading
from ..progress import say
from ..report.html import beside_page, figure_html, page_html
from .from_model import from_plans
from .options import AsJson, help_alone, print_json
from .outputs import MaybeTarget, Target, claiming
from .sessions import behaviour_named, opened
from .tables import aggregate_table, flows_table
from .terminal import out, say_result

meter_app = typer.Typer(
    help="Scores of replies: rates at thresholds, what they hide, and flows from model to model.",
    callback=help_alone,
    invoke_without_command=True,
)

Files = Annotated[
    list[Path], typer.Argument(help="CSV, JSON, JSONL or Parquet files with a reply and its scores a row; the first is the base.")
]
ScoreColumns = Annotated[list[str], typer.Option("--score", help="Column of scores between 0 and 1; repeat for several.")]
Where = Annotated[
    Optional[list[str]],
    typer.Option(
        help="Condition on the rows that count, such as 'prompt_score>0.5' or 'kind=insult'; repeat for several.", show_default=False
    ),
]
Key = Annotated[str, typer.Option(help="Column by which rows of several files belong together, where they have it.")]


@meter_app.command("run", epilog="Example: demeanor meter run organism --max-prompts 50 -o base.csv")
@from_plans
def meter_run(plan: ReplyPlan, loading: SpreadLoading, target: Target, as_json: AsJson = False) -> None:
    """Replies to a behaviour's prompts, scored, in a CSV file with a row per reply."""
    named = [behaviour_named(name) for name in plan.behaviours]
    control = None if plan.control is None else load_control(plan.control)
    session = opened(plan.model, loading)
    behaviours = [preset.settled(session) for preset in named]
    by = {behaviour.name: make_detector(behaviour.detect, session) for behaviour in behaviours}
    _finish(replied(Condition(session, control), behaviours[0], by, plan.max_prompts), list(by), target, as_json)


@meter_app.command("score", epilog="Example: demeanor meter score replies.csv --column reply -b refusal -o scored.csv")
@from_plans
def meter_score(plan: ScorePlan, loading: Loading, target: Target, as_json: AsJson = False) -> None:
    """A column of scores per behaviour, added to a file of replies."""
    for name in set(plan.behaviours) - set(presets()):
        make_detector(detect_of(name, None)[1])  # a mistake in a file must not wait for the model
    table = read_table(plan.file)
    replies, prompts = texts_of(table, plan.column, plan.prompt)
    session = None if plan.model is None else opened(plan.model, loading)
    judges = dict(detect_of(name, session) for name in plan.behaviours)
    by = {name: make_detector(detect, session) for name, detect in judges.items()}
    _finish(scored(table.rows, replies, prompts, by), list(by), target, as_json)


def _finish(rows: Sequence[dict[str, Any]], columns: Sequence[str], target: Path, as_json: bool) -> None:
    """Write scored replies, and print what their scores say at one half."""
    write_rows(rows, target)
    table = ScoreTable(target.name, tuple(rows))
    shares = [aggregate(table, column, 0.5) for column in columns]
    if as_json:
        print_json([share.to_json() for share in shares])
        return
    out.print(aggregate_table(shares, 0.5))
    for warning in dict.fromkeys(text for share in shares for text in share.warnings()):
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
    threshold: Annotated[float, typer.Option(help="Score from which on a reply is counted.")] = 0.5,
    missing: Annotated[
        Literal["not-toxic", "drop"], typer.Option(help="Replies that could not be scored: counted as not toxic, or left out.")
    ] = "not-toxic",
    where: Where = None,
    key: Key = "row",
    as_json: AsJson = False,
) -> None:
    """The share of replies at or above a threshold, with its interval, and what that share hides."""
    tables = _tables(files, where)
    by_column = [[aggregate(table, column, threshold, missing) for table in tables] for column in score]
    aligned = tables[0].aligned(tables[1:], key) if len(tables) > 1 else tables
    pairs = [compare(aligned[0], other, column, threshold) for column in score for other in aligned[1:]]
    shares = [share for column in by_column for share in column]
    if as_json:
        more = {"comparisons": [pair.to_json() for pair in pairs], "warnings": shifts(by_column[0])} if pairs else {}
        print_json({**shares[0].to_json(), **more} if len(shares) == 1 else {"files": [share.to_json() for share in shares], **more})
        return
    out.print(aggregate_table(shares, threshold))
    for pair in pairs:
        say_result(pair)
    for warning in dict.fromkeys([*(text for share in shares for text in share.warnings()), *shifts(by_column[0])]):
        say(f"Mind: {warning}")


@meter_app.command("flows", epilog="Example: demeanor meter flows base.csv tuned.csv rewarded.csv --score toxicity -o flows.html")
@claiming
def meter_flows(
    files: Files,
    score: Annotated[str, typer.Option(help="Column of scores between 0 and 1.")],
    low: Annotated[float, typer.Option(help="Score below which a reply is low.")] = 0.33,
    high: Annotated[float, typer.Option(help="Score above which a reply is high.")] = 0.66,
    where: Where = None,
    key: Key = "row",
    picture: MaybeTarget = None,
    as_json: AsJson = False,
) -> None:
    """Flows of replies from low, medium and high in one file to low, medium and high in one or two others."""
    if not 2 <= len(files) <= 3:
        raise DataError(f"Flows go from a base to one or two other files; {len(files)} files were named.")
    tables = _tables(files, where)
    base, *others = tables[0].aligned(tables[1:], key)
    between = flows(base, others, score, low, high)
    if picture is not None:
        with new_file(picture) as work:
            work.write_text(_flows_page(between, score, low, high), encoding="utf-8")
        beside_page(picture)
    if as_json:
        print_json([flow.to_json() for flow in between])
        return
    for flow in between:
        out.print(flows_table(flow))
        if flow.left_out:
            say(f"{flow.left_out} prompts could not be scored in both and are left out.")


def _flows_page(between: Sequence[Flows], score: str, low: float, high: float) -> str:
    """The flows as a picture, under a title that says what they are of, and as counts."""
    title = f"Where replies go: {score}"
    levels = f"low is under {low:g}, high is over {high:g}"
    tables = [
        f"<h2>{escape(flow.base)} to {escape(flow.other)}</h2><p>{flow.n} replies scored in both, {flow.left_out} left out.</p>"
        + table_html(
            ("from", *LEVELS), [("", [("", level), *(("n", str(n)) for n in row)]) for level, row in zip(LEVELS, flow.counts.tolist())]
        )
        for flow in between
    ]
    return page_html(title, [f"<h1>{escape(title)}</h1><p class='lead'>{levels}</p>", figure_html(sankey(between)), *tables])
