"""Preference pairs: a prompt, the reply that is to be preferred and the one that is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..behaviours import Prompt
from ..errors import DataError
from ..io.display import shown
from ..io.tables import value_of
from .sources import blank, cell, mixed, role_of, rows_of, split_weight, text_of


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt."""

    prompt: Prompt
    chosen: str
    rejected: str


# What the columns are called in published data; the first of each is ours, and wins where a row has several.
COLUMNS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "instruction", "query", "input", "user"),
    "chosen": ("chosen", "chosen_response", "response_chosen", "preferred", "accepted", "better"),
    "rejected": ("rejected", "rejected_response", "response_rejected", "dispreferred", "not_preferred", "worse"),
    "system": ("system", "system_prompt"),
}


def read_pairs(named: Sequence[str], seed: int, columns: Mapping[str, str] | None = None) -> list[Pair]:
    """Pairs from files and data sets, each `NAME` or `NAME:WEIGHT`, mixed and shuffled.

    Columns prompt, chosen and rejected (or as published data call them), as texts or as lists of messages; the prompt may stand
    in the lists instead. `columns` says which column is the prompt, chosen, rejected or system where they are called otherwise.
    DataError names the row that is not one.
    """
    unknown = next((name for name in columns or {} if name not in COLUMNS), None)
    if unknown is not None:
        raise DataError(f"{unknown!r} is nothing that a pair has; name the column of {', '.join(COLUMNS)}.")
    sources = []
    for each in named:
        name, weight = split_weight(each)
        sources.append((name, weight, [_pair(row, f"{name}, row {number}", columns or {}) for number, row in enumerate(rows_of(name), start=1)]))
    return mixed(sources, seed)


def _pair(row: Any, where: str, columns: Mapping[str, str]) -> Pair:
    chosen, rejected = (_column(row, name, f"{name} reply", where, columns) for name in ("chosen", "rejected"))
    opening, preferred = _reply(chosen, f"{where}, chosen")
    other_opening, other = _reply(rejected, f"{where}, rejected")
    if opening and other_opening and opening != other_opening:
        raise DataError(f"{where}: chosen and rejected open with different messages; both must answer the same prompt.")
    given = opening or _column(row, "prompt", "prompt", where, columns)
    has_system = "system" in columns or any(name in row for name in COLUMNS["system"])
    prompt = _prompt(given, _column(row, "system", "system prompt", where, columns) if has_system else None, where)
    if preferred.strip() == other.strip():
        raise DataError(f"{where}: chosen and rejected are the same reply, which prefers nothing; remove the row or correct it.")
    return Pair(prompt=prompt, chosen=preferred, rejected=other)


def _column(row: Any, name: str, what: str, where: str, columns: Mapping[str, str]) -> Any:
    """The cell that holds the prompt, a reply or the system prompt. DataError where two columns may be meant."""
    if name in columns:
        return value_of(row, columns[name], where)
    known = COLUMNS[name]
    filled = [other for other in known[1:] if isinstance(row, Mapping) and row.get(other) not in (None, "", [])]
    if len(filled) > 1 and known[0] not in row:
        raise DataError(f"{where} may have the {what} in {' or '.join(filled)}; say which with --column {name}={filled[0]}.")
    return cell(row, filled if filled and known[0] not in row else known, what, where)


def _reply(value: Any, where: str) -> tuple[list[Any], str]:
    """A reply, and the messages before it where it comes as a whole conversation."""
    if isinstance(value, str) or value is None:
        return [], text_of(value, "reply", where)
    if not isinstance(value, Sequence) or not value:
        raise DataError(f"{where} is {shown(value)}, not a text or a list of messages.")
    *before, last = value
    if role_of(last, where) != "assistant":
        raise DataError(f"{where} does not end with a message of the assistant.")
    return before, text_of(cell(last, ("content", "value"), "text", where), "reply", where)


def _prompt(value: Any, system: Any, where: str) -> Prompt:
    if isinstance(value, str):
        return Prompt.of(text_of(value, "prompt", where), system=None if blank(system) else text_of(system, "system prompt", where))
    if not isinstance(value, Sequence) or not value:
        raise DataError(f"{where}: the prompt is {'empty' if not value else shown(value, 40)}; it must be a text or a list of messages.")
    messages: list[tuple[str, str]] = []
    for message in value:
        role = role_of(message, where) if isinstance(message, Mapping) else None
        if role is None:
            raise DataError(f"{where}: every message of the prompt needs a role (system, user or assistant) and a content.")
        content = cell(message, ("content", "value"), "text", where)
        if role == "system" and not messages and blank(content):
            continue
        messages.append((role, text_of(content, "prompt", where)))
    if messages[0][0] == "system":
        system = messages.pop(0)[1]
    if not messages or messages[-1][0] != "user" or any(role == "system" for role, _ in messages):
        raise DataError(f"{where}: the prompt must be a conversation (system first) that ends with the user.")
    return Prompt(messages=tuple(messages), system=system or None)
