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
from typing import Any, Literal

from ..errors import DataError

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


def read_prompts(path: Path, columns: Columns) -> list[Prompt]:
    """Every row of a JSON, JSONL, CSV or text file as a prompt, in order."""
    if not path.is_file():
        raise DataError(f"The prompt file {path} does not exist; paths in a behaviour file are relative to that file.")
    readers = {".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv, ".txt": _read_text}
    if path.suffix not in readers:
        raise DataError(f"{path} is not a kind of prompt file that can be read; use one of {', '.join(readers)}.")
    try:
        rows = readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    return prompts_from_rows(rows, columns, str(path))


def prompts_from_rows(rows: Sequence[Any], columns: Columns, where: str) -> list[Prompt]:
    """Rows are strings, or mappings from column to value; `where` names their source in errors."""
    if not rows:
        raise DataError(f"{where} holds no prompts; give at least one row.")
    return [_prompt(row, columns, f"{where}, row {number}") for number, row in enumerate(rows, start=1)]


def _prompt(row: Any, columns: Columns, where: str) -> Prompt:
    if isinstance(row, str):
        row = {columns.prompt: row}
        columns = Columns(prompt=columns.prompt)
    if not isinstance(row, dict):
        raise DataError(f"{where} is {type(row).__name__}, not a text or an object with columns.")

    def cell(column: str | None) -> str | None:
        if column is None:
            return None
        if column not in row:
            raise DataError(f"{where} has no column {column!r}; it has {', '.join(map(repr, row))}.")
        value = row[column]
        if value is None or value == "":
            return None
        if not isinstance(value, (str, int, float)):
            raise DataError(f"{where}, column {column!r} holds {type(value).__name__}, not text.")
        return str(value)

    messages = row.get(columns.prompt)
    if isinstance(messages, list):
        return _conversation(messages, cell, columns, where)
    text = cell(columns.prompt)
    if text is None or not text.strip():
        raise DataError(f"{where} has an empty prompt in column {columns.prompt!r}; remove the row or fill it in.")
    return Prompt.of(text, answer=cell(columns.answer), reply=cell(columns.reply), system=cell(columns.system))


def _conversation(messages: list[Any], cell: Any, columns: Columns, where: str) -> Prompt:
    turns = []
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise DataError(f"{where}: every message needs a role and a content.")
        turns.append((str(message["role"]), str(message["content"])))
    system = cell(columns.system)
    if turns and turns[0][0] == "system":
        system = turns.pop(0)[1]
    if not turns or turns[-1][0] != "user":
        raise DataError(f"{where}: a conversation must end with a user message.")
    return Prompt(tuple(turns), system=system, answer=cell(columns.answer), reply=cell(columns.reply))


def _read_json(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(rows, list):
        raise DataError(f"{path} must hold a JSON list of prompts or objects, not {type(rows).__name__}.")
    return rows


def _read_jsonl(path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number} is not valid JSON: {error}.") from error
    return rows


def _read_csv(path: Path) -> list[Any]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise DataError(f"{path}, row {number} has more or fewer fields than the header line.")
    return rows


def _read_text(path: Path) -> list[Any]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
