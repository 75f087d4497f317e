"""Texts and conversations to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import DataError
from .conversations import Conversation
from .sources import conversation, mixed, rows_of, split_weight, text_of

REPLIES = ("reply", "completion", "response", "answer")


def read_texts(named: Sequence[str], seed: int) -> list[str | Conversation]:
    """Plain texts (a text a row, or the column text), conversations (messages) and exchanges (prompt and reply), mixed.

    DataError names the row that is none of these.
    """
    sources = []
    for each in named:
        name, weight = split_weight(each)
        sources.append((name, weight, [_row(row, f"{name}, row {number}") for number, row in enumerate(rows_of(name), start=1)]))
    return mixed(sources, seed)


def _row(row: Any, where: str) -> str | Conversation:
    if isinstance(row, str):
        return text_of(row, "text", where)
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is {type(row).__name__}, not a text or an object with columns.")
    listed = next((name for name in ("messages", "conversations") if name in row), None)
    if listed is not None:
        return conversation(row[listed], where)
    if "prompt" in row:
        column = next((name for name in REPLIES if name in row), None)
        if column is None:
            raise DataError(
                f"{where} has a prompt and no column for the reply ({' or '.join(REPLIES)}); it has {', '.join(map(repr, row))}."
            )
        prompt = row["prompt"]
        before = prompt if isinstance(prompt, list) else [{"role": "user", "content": text_of(prompt, "prompt", where)}]
        if row.get("system"):
            before = [{"role": "system", "content": row["system"]}, *before]
        return conversation([*before, {"role": "assistant", "content": text_of(row[column], "reply", where)}], where)
    if "text" in row:
        return text_of(row["text"], "text", where)
    raise DataError(
        f"{where} has none of the columns that can be learned from (text; messages; prompt and reply); it has {', '.join(map(repr, row))}."
    )
