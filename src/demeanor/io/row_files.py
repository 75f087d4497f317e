"""Files of rows, as people have them: the ending says what a file holds, and an ending that says nothing means text.

Every row is kept or the file is refused.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from ..errors import DataError
from .claims import refuse_output
from .csv_files import unguarded

TEXT = "utf-8-sig"  # UTF-8, with or without a byte order mark
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # such a file is told by its encoding
PACKED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
WRAPPERS = ("data", "rows", "examples", "items", "records", "instances", "samples", "prompts", "train")  # of a list in a JSON object
SAVED = ("state.json", "dataset_dict.json")  # in a folder that `datasets` saved
NO_TEXT = (".xlsx", ".xls", ".ods", ".yaml", ".yml", ".arrow", ".feather", ".zip", ".tar", ".tgz", ".zst", ".pdf", ".docx")


def read_rows(path: Path) -> list[Any]:
    """Every row of a file, or of a folder that `datasets` saved, in order: JSON, JSON lines, CSV, TSV, Parquet or text, packed or not."""
    refuse_output(path)
    if path.is_dir():
        return saved_rows(path)
    if not path.is_file():
        raise DataError(f"The file {path} does not exist; paths in a behaviour file are relative to that file.")
    packed = path.suffix.lower() in PACKED
    kind = (path.with_suffix("") if packed else path).suffix.lower()
    try:
        content = PACKED[path.suffix.lower()](path).read() if packed else path.read_bytes()
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if kind == ".parquet":
        return _read_parquet(content, path)
    if kind in NO_TEXT or (b"\0" in content and not content.startswith(UTF_16)):
        raise DataError(f"{path} is not a kind of file that can be read; use one of {', '.join(READERS)}, .parquet, or text, a prompt a line.")
    try:
        text = content.decode(TEXT)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    if kind in (".csv", ".tsv"):
        return READERS[kind](io.StringIO(text, newline=""), path)
    return READERS.get(kind, _read_any_text)(io.StringIO(text, newline=None), path)


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved it with save_to_disk."""
    return any((folder / name).is_file() for name in SAVED)


def saved_rows(folder: Path, split: str | None = None) -> list[Any]:
    """Every row of a folder that `datasets` saved; of one that holds several splits, of the one that is named."""
    from datasets import DatasetDict, load_from_disk

    if not is_saved(folder):
        raise DataError(f"{folder} is a folder, and not one that datasets saved (save_to_disk); name a file in it.")
    try:
        held = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"The data set in {folder} cannot be read: {' '.join(str(error).split())[:200]}.") from error
    if isinstance(held, DatasetDict):
        chosen = split if split in held else next(iter(held)) if split is None and len(held) == 1 else None
        if chosen is None:
            raise DataError(f"{folder} holds the splits {', '.join(map(str, held))}; name one, as {folder / str(next(iter(held), 'train'))}.")
        held = held[chosen]
    elif split is not None and held.split is not None and str(held.split) != split:
        raise DataError(f"{folder} holds the split {held.split}, not {split}; correct the split.")
    return held.to_list()  # type: ignore[no-any-return]


def _read_parquet(content: bytes, path: Path) -> list[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Any] = pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from error
    return rows


def _read_json(file: TextIO, path: Path) -> list[Any]:
    text = file.read()
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = _json_objects(text)
        if lines is not None:
            return lines
        raise DataError(f"{path} is not valid JSON: {error}.") from error
    if isinstance(rows, dict):
        lists = [name for name in WRAPPERS if isinstance(rows.get(name), list)]
        if len(lists) == 1:
            return list(rows[lists[0]])
    if not isinstance(rows, list):
        raise DataError(f"{path} must hold a JSON list of prompts or objects, or an object with such a list as data, not {type(rows).__name__}.")
    return rows


def _json_objects(text: str) -> list[Any] | None:
    """The rows of a text of JSON lines; None where not every line is an object or a text."""
    try:
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError):
        return None
    return rows if rows and all(isinstance(row, (dict, str)) for row in rows) else None


def _read_jsonl(file: TextIO, path: Path) -> list[Any]:
    rows: list[Any] = []
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number} is not valid JSON: {error}.") from error
    return rows


def _read_tsv(file: TextIO, path: Path) -> list[Any]:
    return _read_csv(file, path, "\t")


def _read_csv(file: TextIO, path: Path, delimiter: str | None = None) -> list[Any]:
    if delimiter is None:  # where a comma is a decimal point, spreadsheets write semicolons
        heading = file.readline()
        file.seek(0)
        delimiter = next((sign for sign in (",", ";", "\t") if sign in heading), ",")
    lines = _cells(file, path, delimiter)
    header = list(map(unguarded, next(lines, [])))
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has two columns named {twice!r}; rename one of them.")
    rows = []
    for number, cells in enumerate(lines, start=1):
        if len(cells) != len(header):
            fix = "close its quotes" if any("\n" in cell for cell in cells) else f"quote {SEPARATORS[delimiter]} inside a field"
            raise DataError(f"{path}, row {number} has more or fewer fields than the header line; {fix}.")
        rows.append(dict(zip(header, map(unguarded, cells))))
    return rows


def _cells(file: TextIO, path: Path, delimiter: str) -> Iterator[list[str]]:
    """The lines of a table, empty ones left out. A last line of ours is a line of its own unless a quote before it is still open."""
    last, begins = "\0end\0", 1
    reader = csv.reader(chain(file, [last]), delimiter=delimiter)
    try:
        for cells in reader:
            if cells == [last]:
                return
            if cells and cells[-1].endswith(last):
                raise DataError(f"{path}, line {begins}: a quote is opened here and never closed; close it, or write it twice inside a quoted field.")
            begins = reader.line_num + 1
            if cells:
                yield cells
    except csv.Error as error:
        told = "a quote is opened here and probably never closed" if "field larger" in str(error) else str(error)
        raise DataError(f"{path}, line {begins} is not a line of a CSV file that can be read: {told}.") from error


def _read_text(file: TextIO, path: Path) -> list[Any]:
    return [line.rstrip("\n") for line in file if line.strip()]


def _read_any_text(file: TextIO, path: Path) -> list[Any]:
    """A file whose ending says nothing: JSON objects, one a line, or texts, one a line."""
    text = file.read()
    rows = _json_objects(text) if text.lstrip().startswith("{") else None
    return _read_text(io.StringIO(text), path) if rows is None else rows


READERS: dict[str, Callable[[TextIO, Path], list[Any]]] = {
    ".json": _read_json, ".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".csv": _read_csv, ".tsv": _read_tsv, ".txt": _read_text,
}  # fmt: skip
