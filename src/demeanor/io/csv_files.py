"""CSV as this package writes it: UTF-8, a header, and no cell that a spreadsheet program runs as a formula.

An apostrophe before such a cell makes it text; whatever reads the file here takes it away again.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# A cell that begins like this may be run as a formula; the wide forms are taken for the others by some programs.
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
_GUARDED = re.compile(rf"'+(?:{_FORMULA.pattern})")
_NUMBER = re.compile(r"-[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")  # begins like one, and is none


def csv_line(cells: Sequence[Any]) -> str:
    """One line of a file, ended as CSV ends lines."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerow([guarded(cell) if isinstance(cell, str) else cell for cell in cells])
    return buffer.getvalue()


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Iterable[str] = ()) -> None:
    """A header and a line per row. Columns are those named, or all of the rows', in order; a cell that a row lacks is empty."""
    names = list(columns) or list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(csv_line(names))
        for row in rows:
            file.write(csv_line([row.get(name, "") for name in names]))


def guarded(cell: str) -> str:
    """A cell that no spreadsheet program runs."""
    runs = _FORMULA.match(cell) and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if runs or _GUARDED.match(cell) else cell


def unguarded(cell: str) -> str:
    """The text of a cell: without the apostrophe that guards it."""
    return cell[1:] if _GUARDED.match(cell) else cell
