"""Tables of scored replies: a row a reply, columns of scores in [0, 1]; whatever is not a number there could not be scored."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import DataError
from ...io.row_files import read_rows
from ...io.tables import selected

KEY = "row"  # the column that says which rows of two files are of the same prompt, where there is one


@dataclass(frozen=True)
class ScoreTable:
    """Rows of one file, as mappings from column to value; `name` is what the file is called."""

    name: str
    rows: tuple[Mapping[str, Any], ...]

    @property
    def columns(self) -> list[str]:
        """Of any row: in JSON a row may lack some."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def lacking(self, column: str) -> list[int]:
        """The numbers (from 1) of the rows that do not have a column at all."""
        return [number for number, row in enumerate(self.rows, start=1) if column not in row]

    def scores(self, column: str) -> Tensor:
        """[row], float64; nan where a cell is missing, empty, no number, or outside [0, 1] (remote services write -1)."""
        if column not in self.columns:
            raise DataError(f"{self.name} has no column {column!r}; it has {', '.join(map(repr, self.columns))}.")
        values = [_score(row.get(column)) for row in self.rows]
        made = torch.tensor(values, dtype=torch.float64)
        if made.isnan().all():
            raise DataError(f"{self.name}: no cell of column {column!r} is a score between 0 and 1; name a column of scores.")
        return made

    def share(self, column: str) -> Tensor | None:
        """[row], float64: a column that need not be there, such as the share of letters in another script."""
        return torch.tensor([_score(row.get(column)) for row in self.rows], dtype=torch.float64) if column in self.columns else None

    def where(self, conditions: Mapping[str, Any]) -> ScoreTable:
        """The rows on which every condition holds; what is left out is told."""
        return replace(self, rows=tuple(selected(self.rows, conditions, None, self.name).values()))

    def aligned(self, others: Sequence[ScoreTable], key: str = KEY) -> list[ScoreTable]:
        """This table and others, row by row of the same prompts: by the column `key` where all have it, else by place."""
        tables = [self, *others]
        if all(key in table.columns for table in tables):
            return _by_key(tables, key)
        lengths = {table.name: len(table.rows) for table in tables}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name} {count}" for name, count in lengths.items())
            raise DataError(
                f"The files have different numbers of rows ({counts}) and no common column {key!r} to match them by; name one with --key."
            )
        return tables


def _by_key(tables: Sequence[ScoreTable], key: str) -> list[ScoreTable]:
    keyed = []
    for table in tables:
        rows = {_key(row, key, table.name, number): row for number, row in enumerate(table.rows, start=1)}
        if len(rows) < len(table.rows):
            raise DataError(f"{table.name}: the column {key!r} names {len(table.rows) - len(rows)} rows twice; it must tell them apart.")
        keyed.append(rows)
    common = [value for value in keyed[0] if all(value in rows for rows in keyed)]
    if not common:
        raise DataError(f"No row of {tables[0].name} is in the other files by its {key!r}; they are of different prompts.")
    return [replace(table, rows=tuple(rows[value] for value in common)) for table, rows in zip(tables, keyed)]


def _key(row: Mapping[str, Any], column: str, name: str, number: int) -> Hashable:
    value = row.get(column)
    if value is None or not isinstance(value, Hashable):
        raise DataError(f"{name}, row {number} has no {column!r} by which it could be matched; give it one, or name another column with --key.")
    return value


def _score(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
    return number if 0 <= number <= 1 else float("nan")


def read_table(path: Path) -> ScoreTable:
    """A CSV, JSON, JSONL or Parquet file of scored replies."""
    rows = read_rows(path)
    wrong = next((number for number, row in enumerate(rows, start=1) if not isinstance(row, dict)), None)
    if not rows or wrong is not None:
        where = "" if wrong is None else f" (row {wrong} has none)"
        raise DataError(f"{path} holds no rows with columns{where}; give a file with a reply and its scores a row.")
    return ScoreTable(path.name, tuple(rows))
