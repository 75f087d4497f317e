"""Rows (texts, or mappings from column to value): those of data sets of the Hub, their cells, and which of them are used.

Every row is kept or the source is refused; rows that a `where` leaves out are counted aloud.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError
from ..progress import muted, say
from .display import LONGEST, shown
from .row_files import is_saved, saved_rows

MIRROR = "DEMEANOR_DATASETS"  # a folder that holds data sets as owner/name, looked at before the Hub
TEXT_PARTS = ("text", "input_text", "output_text")  # kinds of content parts that are texts
COMPARISONS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


def dataset_rows(name: str, subset: str | None, split: str, revision: str | None) -> list[Any]:
    """Every row of one split of a data set: a Hub id `owner/name`, or a local folder of that form under $DEMEANOR_DATASETS."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError, DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    mirror = os.environ.get(MIRROR)
    local = Path(mirror) / name if mirror else None
    if local is not None and not local.is_dir():
        raise DataError(
            f"${MIRROR} is set to {mirror}, which holds no data set {name}; put it there, or unset the variable to use the Hub."
        )
    if name.count("/") != 1:
        raise DataError(f"{name!r} is not a data set; its Hub id has the form owner/name.")
    if local is not None and subset is None and is_saved(local):
        return saved_rows(local, split)
    try:
        with muted_datasets():  # retries and bars; what comes of it is told below
            columns = load_dataset(str(local or name), subset, split=split, revision=None if local else revision)[:]
    except (OSError, ValueError, RuntimeError, yaml.YAMLError, DatasetsError, HfHubHTTPError) as error:
        part = f"{name}, {subset}" if subset else name
        # That one says only that something went wrong; what it came from says what.
        cause = error.__cause__ or error if isinstance(error, DatasetGenerationError) else error
        reason = " ".join(str(cause).split())[:300].rstrip(".")
        raise DataError(
            f"The data set {part} (split {split!r}) could not be read: {reason}; without the network, put it under ${MIRROR}."
        ) from error
    return [dict(zip(columns, cells)) for cells in zip(*columns.values())]  # many times faster than row by row


@contextmanager
def muted_datasets() -> Iterator[None]:
    """Without the remarks and bars of `datasets` and the Hub's client; both are as before afterwards."""
    import datasets

    hidden = datasets.are_progress_bars_disabled()
    with muted("datasets", "huggingface_hub"):
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            if not hidden:
                datasets.enable_progress_bars()


def selected(rows: Sequence[Any], where: Mapping[str, Any], limit: int | None, source: str) -> dict[int, Any]:
    """The rows on which every condition of `where` holds, at most the first `limit` of them, by their numbers in the
    source (from 1); what is left out is told.

    A condition is a value, a list of values, or a comparison such as "> 0.5".
    """
    kept = dict(enumerate(rows, start=1))
    for column, wanted in where.items():
        holds = _condition(wanted, source)
        kept = {number: row for number, row in kept.items() if holds(value_of(row, column, f"{source}, row {number}"))}
    if where and rows:
        conditions = " and ".join(f"{column}: {wanted if isinstance(wanted, str) else shown(wanted)}" for column, wanted in where.items())
        if not kept:
            raise DataError(f"{source}: none of {len(rows)} rows has {conditions}; correct `where`.")
        say(f"{source}: {len(kept)} of {len(rows)} rows have {conditions}.")
    if limit is not None and limit < len(kept):
        say(f"{source}: the first {limit} of {len(kept)} rows are used.")
    return dict(list(kept.items())[:limit])


def value_of(row: Any, column: str, source: str) -> Any:
    """A cell; `a.b` is the value b inside the column a, where no column has that whole name."""
    if not isinstance(row, Mapping):
        raise DataError(f"{source}: a row is {type(row).__name__}, not an object with columns such as {column!r}.")
    value: Any = row
    for step in [column] if column in row else column.split("."):
        if not isinstance(value, Mapping) or step not in value:
            raise DataError(f"{source} has no column {column!r}; it has {', '.join(map(repr, row))}.")
        value = value[step]
    return value


def content_of(value: Any, where: str) -> Any:
    """The content of a message: the texts of a list of parts as one text, anything else as it is. DataError for a part that is no text."""
    if not isinstance(value, list) or not value:
        return value
    texts = []
    for part in value:
        kind = part.get("type") or "text" if isinstance(part, Mapping) else "text"
        text = part.get("text") if isinstance(part, Mapping) else part
        if kind not in TEXT_PARTS or not isinstance(text, str):
            what = shown(part) if kind in TEXT_PARTS else repr(kind)[:LONGEST]
            raise DataError(f"{where}: a message holds a part that is not text ({what}), and only text can be given to a model here; leave it out.")
        texts.append(text)
    return "\n".join(texts)


def _condition(wanted: Any, source: str) -> Callable[[Any], bool]:
    if isinstance(wanted, list):
        return lambda value: any(_same(value, one) for one in wanted)
    if isinstance(wanted, dict):
        raise DataError(f'{source}: {shown(wanted)} in `where` is no condition; use a value, a list of values, or a comparison such as "> 0.5".')
    if isinstance(wanted, str) and wanted.lstrip().startswith("!="):
        unwanted = wanted.lstrip()[2:].strip()
        return lambda value: not _same(value, unwanted)
    compared = re.fullmatch(r"\s*(>=|<=|>|<)\s*([-+.\d].*)", wanted) if isinstance(wanted, str) else None
    if compared is None and isinstance(wanted, str) and wanted.lstrip().startswith((">", "<", "=")):
        raise DataError(
            f'{source}: {shown(wanted)} in `where` compares with no number; write the value alone, "!= value", or a comparison such as "> 0.5".'
        )
    if compared is None:
        return lambda value: _same(value, wanted)
    compare, number = COMPARISONS[compared[1]], _number(compared[2])
    if number is None:
        raise DataError(f"{source}: {shown(wanted)} in `where` compares with {compared[2]!r}, which is not a number.")
    bound = number
    return lambda value: (number := _number(value)) is not None and compare(number, bound)


def _same(value: Any, expected: Any) -> bool:
    """Equal, also where a file holds as text what YAML reads as a number or a truth value."""
    if isinstance(expected, bool) or isinstance(value, bool):
        return str(value).lower() == str(expected).lower()
    return bool(value == expected) or (_number(value) is not None and _number(value) == _number(expected)) or str(value) == str(expected)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None

