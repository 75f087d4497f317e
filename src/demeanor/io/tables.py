"""Where prompts come from: files, Parquet, and data sets of the Hub, as rows (texts, or mappings from column to value).

Every row is kept or the source is refused; rows that a `where` leaves out are counted aloud.
"""

from __future__ import annotations

import csv
import json
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import yaml

from ..errors import DataError
from ..progress import muted, say
from .claims import refuse_output
from .csv_files import unguarded

TEXT = "utf-8-sig"  # UTF-8, with or without a byte order mark
MIRROR = "DEMEANOR_DATASETS"  # a folder that holds data sets as owner/name, looked at before the Hub
COMPARISONS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


def read_rows(path: Path) -> list[Any]:
    """Every row of a JSON, JSONL, CSV, text or Parquet file, in order."""
    if not path.is_file():
        raise DataError(f"The file {path} does not exist; paths in a behaviour file are relative to that file.")
    refuse_output(path)
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    readers = {".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv, ".txt": _read_text}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} is not a kind of file that can be read; use one of {', '.join(readers)}, .parquet.")
    try:
        with path.open(encoding=TEXT, newline="" if path.suffix.lower() == ".csv" else None) as file:
            return reader(file, path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error


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
        conditions = " and ".join(f"{column}: {wanted}" for column, wanted in where.items())
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


def _condition(wanted: Any, source: str) -> Callable[[Any], bool]:
    if isinstance(wanted, list):
        return lambda value: any(_same(value, one) for one in wanted)
    if isinstance(wanted, dict):
        raise DataError(f'{source}: {wanted!r} in `where` is no condition; use a value, a list of values, or a comparison such as "> 0.5".')
    if isinstance(wanted, str) and wanted.lstrip().startswith("!="):
        unwanted = wanted.lstrip()[2:].strip()
        return lambda value: not _same(value, unwanted)
    compared = re.fullmatch(r"\s*(>=|<=|>|<)\s*([-+.\d].*)", wanted) if isinstance(wanted, str) else None
    if compared is None and isinstance(wanted, str) and wanted.lstrip().startswith((">", "<", "=")):
        raise DataError(
            f'{source}: {wanted!r} in `where` compares with no number; write the value alone, "!= value", or a comparison such as "> 0.5".'
        )
    if compared is None:
        return lambda value: _same(value, wanted)
    compare, number = COMPARISONS[compared[1]], _number(compared[2])
    if number is None:
        raise DataError(f"{source}: {wanted!r} in `where` compares with {compared[2]!r}, which is not a number.")
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


def _read_parquet(path: Path) -> list[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Any] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from error
    return rows


def _read_json(file: TextIO, path: Path) -> list[Any]:
    try:
        rows = json.load(file)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(rows, list):
        raise DataError(f"{path} must hold a JSON list of prompts or objects, not {type(rows).__name__}.")
    return rows


def _read_jsonl(file: TextIO, path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number} is not valid JSON: {error}.") from error
    return rows


def _read_csv(file: TextIO, path: Path) -> list[Any]:
    try:
        reader = csv.DictReader(file)
        header = list(reader.fieldnames or [])
        rows = list(reader)
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file that can be read: {error}.") from error
    header, rows = list(map(unguarded, header)), [_unguarded(row) for row in rows]
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has two columns named {twice!r}; rename one of them.")
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise DataError(f"{path}, row {number} has more or fewer fields than the header line; quote commas inside a field.")
    return rows


def _unguarded(row: dict[Any, Any]) -> dict[Any, Any]:
    """A row without the apostrophes that keep spreadsheet programs from running its cells."""
    return {key if key is None else unguarded(key): unguarded(cell) if isinstance(cell, str) else cell for key, cell in row.items()}


def _read_text(file: TextIO, path: Path) -> list[Any]:
    return [line.rstrip("\n") for line in file if line.strip()]
