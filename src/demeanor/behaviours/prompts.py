"""Prompts, and the files they come from.

A prompt file is JSON (a list), JSONL, CSV or plain text (one prompt a line). Every row is kept or the
file is refused: a missing column, an empty prompt or an empty file is an error that names the place.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from ..errors import DataError
from ..progress import say

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
# Shares of a set that fall into train and val; the rest is test.
TRAIN_SHARE, VAL_SHARE = 0.5, 0.25

Message = tuple[str, str]  # (role, content)


@dataclass(frozen=True)
class Prompt:
    """What is said to a model. Rendered only by the model's chat template, or as plain text without one."""

    messages: tuple[Message, ...]
    system: str | None = None
    prefill: str = ""
    reply: str | None = None
    answer: str | None = None

    @classmethod
    def of(cls, text: str, **rest: Any) -> Prompt:
        """A prompt of one user message."""
        return cls(messages=(("user", text),), **rest)

    @property
    def text(self) -> str:
        """The last message: what a table or a detector shows as the prompt."""
        return self.messages[-1][1]

    @property
    def split(self) -> Split:
        """Where hashing the prompt puts it: independent of file, order and the other prompts."""
        key = json.dumps([self.system, self.messages], ensure_ascii=False)
        share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
        return "train" if share < TRAIN_SHARE else "val" if share < TRAIN_SHARE + VAL_SHARE else "test"


def as_prompt(text: str | Prompt) -> Prompt:
    return text if isinstance(text, Prompt) else Prompt.of(text)


@dataclass(frozen=True)
class Columns:
    """Which columns of a file hold what; only `prompt` must exist by default."""

    prompt: str = "prompt"
    answer: str | None = None
    reply: str | None = None
    system: str | None = None


ROLES = ("user", "assistant")
TEXT = "utf-8-sig"  # UTF-8, with or without a byte order mark


def read_prompts(path: Path, columns: Columns) -> list[Prompt]:
    """Every row of a JSON, JSONL, CSV or text file as a prompt, in order; repeated prompts once, counted aloud."""
    if not path.is_file():
        raise DataError(f"The prompt file {path} does not exist; paths in a behaviour file are relative to that file.")
    readers = {".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv, ".txt": _read_text}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} is not a kind of prompt file that can be read; use one of {', '.join(readers)}.")
    try:
        with path.open(encoding=TEXT, newline="" if path.suffix.lower() == ".csv" else None) as file:
            rows = reader(file, path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    return prompts_from_rows(rows, columns, str(path))


def prompts_from_rows(rows: Sequence[Any], columns: Columns, where: str) -> list[Prompt]:
    """Rows are strings, or mappings from column to value; `where` names their source in errors."""
    if not rows:
        raise DataError(f"{where} holds no prompts; give at least one row.")
    prompts = [_prompt(row, columns, f"{where}, row {number}") for number, row in enumerate(rows, start=1)]
    distinct = list({(prompt.system, prompt.messages): prompt for prompt in prompts}.values())
    if len(distinct) < len(prompts):
        say(f"{where}: {len(prompts) - len(distinct)} of {len(prompts)} prompts repeat another and are counted once.")
    return distinct


def _prompt(row: Any, columns: Columns, where: str) -> Prompt:
    if isinstance(row, str):
        row = {columns.prompt: row}
        columns = Columns(prompt=columns.prompt)
    if not isinstance(row, dict):
        raise DataError(f"{where} is {type(row).__name__}, not a text or an object with columns.")
    rest = {name: _cell(row, getattr(columns, name), where) for name in ("answer", "reply", "system")}
    if isinstance(row.get(columns.prompt), list):
        return _conversation(row[columns.prompt], rest, where)
    text = _cell(row, columns.prompt, where)
    if text is None or not text.strip():
        raise DataError(f"{where} has an empty prompt in column {columns.prompt!r}; remove the row or fill it in.")
    return Prompt.of(text, **rest)


def _cell(row: dict[str, Any], column: str | None, where: str) -> str | None:
    """One cell as text; None where the column is not asked for or the cell is empty."""
    if column is None:
        return None
    if column not in row:
        raise DataError(f"{where} has no column {column!r}; it has {', '.join(map(repr, row))}.")
    value = row[column]
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value != value:
        raise DataError(f"{where}, column {column!r} holds {value!r}, which is not text.")
    return _text(str(value), where)


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds half a character (a lone surrogate), which no model can read; correct the file.") from error
    return value


def _conversation(messages: list[Any], rest: dict[str, Any], where: str) -> Prompt:
    turns: list[tuple[Any, str]] = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or not message["content"].strip():
            raise DataError(f"{where}: every message needs a role and a content that is text.")
        turns.append((message.get("role"), _text(message["content"], where)))
    if turns and turns[0][0] == "system":
        rest = {**rest, "system": turns.pop(0)[1]}
    wrong = next((role for role, _ in turns if role not in ROLES), None)
    if wrong is not None or not turns or turns[-1][0] != "user":
        told = f"has the role {wrong!r}; roles are" if wrong is not None else "must end with a user message; roles are"
        raise DataError(f"{where}: a conversation {told} system (first), user and assistant.")
    return Prompt(tuple(turns), **rest)


def _read_json(file: TextIO, path: Path) -> list[Any]:
    try:
        rows = json.load(file)
    except (json.JSONDecodeError, RecursionError) as error:
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
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(f"{path}, line {number} is not valid JSON: {error}.") from error
    return rows


def _read_csv(file: TextIO, path: Path) -> list[Any]:
    try:
        reader = csv.DictReader(file)
        header = list(reader.fieldnames or [])
        rows = list(reader)
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file that can be read: {error}.") from error
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has two columns named {twice!r}; rename one of them.")
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise DataError(f"{path}, row {number} has more or fewer fields than the header line; quote commas inside a field.")
    return rows


def _read_text(file: TextIO, path: Path) -> list[Any]:
    return [line.rstrip("\n") for line in file if line.strip()]
