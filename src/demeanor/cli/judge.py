"""`demeanor judge`: refusals in a file of replies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..detect.judge import judge as judge_replies
from ..errors import DataError
from ..io.atomic import new_file
from ..io.csv_files import write_csv
from ..io.row_files import read_rows
from ..io.tables import value_of
from ..models.thinking import spoken
from ..progress import say
from .options import AsJson, print_json
from .outputs import MaybeTarget, claiming

COLUMNS = ("label", "probability", "evidence")


@claiming
def judge(
    file: Annotated[Path, typer.Argument(help="File with a reply a row: CSV, TSV, JSON, JSON lines, Parquet or text.")],
    column: Annotated[str, typer.Option(help="Column of replies.")] = "reply",
    prompt: Annotated[Optional[str], typer.Option(help="Column of prompts, where there is one: it helps.", show_default=False)] = None,
    target: MaybeTarget = None,
    as_json: AsJson = False,
) -> None:
    """Labels of replies (full_refusal, partial_refusal or none), the probability of a refusal and the sentence that shows it."""
    rows = read_rows(file)
    if not rows:
        raise DataError(f"{file} holds no rows; give a file with a reply a row.")
    replies = [spoken(_text(row, column, f"{file}, row {number}")) for number, row in enumerate(rows, start=1)]
    prompts = None if prompt is None else [_text(row, prompt, f"{file}, row {number}") for number, row in enumerate(rows, start=1)]
    judged = [
        dict(zip(COLUMNS, (each.label, each.refusal, reply[slice(*each.evidence)] if each.evidence else "")))
        for reply, each in zip(replies, judge_replies(replies, prompts))
    ]
    if target is not None:
        with new_file(target) as work:
            write_csv(work, judged, COLUMNS)
    if as_json:
        print_json(judged)
        return
    for label in ("full_refusal", "partial_refusal", "none"):
        count = sum(row["label"] == label for row in judged)
        print(f"{label:<16}{count:>7}  {100 * count / len(judged):5.1f} %")
    if target is not None:
        say(f"{target}: {len(judged)} rows.")


def _text(row: Any, column: str, where: str) -> str:
    value = row if isinstance(row, str) else value_of(row, column, where)
    return "" if value is None else str(value)
