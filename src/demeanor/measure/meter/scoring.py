"""Scored replies: what a model says to a behaviour's prompts, or the replies of a file, with a column per detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...behaviours import BehaviourLike, Prompt, as_behaviour, asked
from ...detect import Detector
from ...errors import DataError
from ...io.atomic import new_file
from ...io.csv_files import write_csv
from ...io.tables import value_of
from ...models.thinking import spoken
from ..condition import Condition
from ..degeneration import non_latin
from .aggregates import EMPTY, NON_LATIN
from .table import KEY, ScoreTable


def replied(
    condition: Condition, behaviour: BehaviourLike, by: Mapping[str, Detector], max_prompts: int | None = None
) -> list[dict[str, Any]]:
    """A scored row per prompt of `shows` and `lacks`, all splits: greedy replies. Raises DataError where there are no prompts."""
    behaviour = as_behaviour(behaviour, condition.session)
    prompts = [(name, prompt) for name in ("shows", "lacks") for prompt in asked(behaviour.set(name, None, max_prompts))]
    if not prompts:
        raise DataError(f"The behaviour {behaviour.name!r} has no shows or lacks prompts to reply to.")
    said = [prompt for _, prompt in prompts]
    replies = [reply.text for reply in condition.generate(said, condition.session.reply_tokens)]
    rows = [
        {KEY: number, "set": name, "split": prompt.split, "prompt": prompt.text, "reply": reply}
        for number, ((name, prompt), reply) in enumerate(zip(prompts, replies))
    ]
    return scored(rows, replies, said, by)


def texts_of(table: ScoreTable, column: str, prompt: str | None) -> tuple[list[str], list[Prompt]]:
    """The replies of a file and, where their column is known, the prompts; an empty prompt is a mistake, an empty reply is not."""
    replies = ["" if (value := value_of(row, column, table.name)) is None else str(value) for row in table.rows]
    if prompt is None:
        return replies, []
    asked_for = [value_of(row, prompt, table.name) for row in table.rows]
    missing = next((number for number, value in enumerate(asked_for, start=1) if not str(value or "").strip()), None)
    if missing is not None:
        raise DataError(f"{table.name}, row {missing} has no prompt in column {prompt!r}; fill it in, or leave out --prompt.")
    return replies, [Prompt.of(str(value)) for value in asked_for]


def scored(
    rows: Sequence[Mapping[str, Any]], replies: Sequence[str], prompts: Sequence[Prompt], by: Mapping[str, Detector]
) -> list[dict[str, Any]]:
    """The rows with a score in [0, 1] per detector, the share of letters in another script, and whether the reply is empty.

    An empty reply gets no score: silence is not the absence of a behaviour, and `aggregate` counts it as unscorable.
    """
    taken = next((name for name in by if any(name in row for row in rows)), None)
    if taken is not None:
        raise DataError(f"There is a column {taken!r} already; leave it out of the file, or score by another behaviour.")
    words = [spoken(reply).strip() for reply in replies]
    filled = [number for number, text in enumerate(words) if text]
    table: list[dict[str, Any]] = [
        {**row, EMPTY: int(not text), NON_LATIN: round(non_latin(text), 4)} for row, text in zip(rows, words, strict=True)
    ]
    for name, detector in by.items():
        column: list[float | str] = [""] * len(table)
        scores = detector.probabilities([words[number] for number in filled], [prompts[number] for number in filled] if prompts else [])
        for number, score in zip(filled, scores, strict=True):
            column[number] = round(score, 6)
        table = [{**row, name: score} for row, score in zip(table, column)]
    return table


def write_rows(rows: Sequence[Mapping[str, Any]], target: Path) -> None:
    """A CSV file of the rows, in order."""
    with new_file(target) as work:
        write_csv(work, rows)
