"""Preference pairs: a prompt, the reply that is to be preferred and the one that is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..behaviours import Prompt
from ..errors import DataError
from .sources import cell, mixed, role_of, rows_of, split_weight, text_of


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt."""

    prompt: Prompt
    chosen: str
    rejected: str


def read_pairs(named: Sequence[str], seed: int) -> list[Pair]:
    """Pairs from files and data sets, each `NAME` or `NAME:WEIGHT`, mixed and shuffled.

    Columns prompt, chosen and rejected, as texts or as lists of messages; the prompt may stand in the lists instead.
    DataError names the row that is not one.
    """
    sources = []
    for each in named:
        name, weight = split_weight(each)
        sources.append((name, weight, [_pair(row, f"{name}, row {number}") for number, row in enumerate(rows_of(name), start=1)]))
    return mixed(sources, seed)


def _pair(row: Any, where: str) -> Pair:
    chosen, rejected = (cell(row, (name,), f"{name} reply", where) for name in ("chosen", "rejected"))
    opening, preferred = _reply(chosen, f"{where}, chosen")
    other_opening, other = _reply(rejected, f"{where}, rejected")
    if opening and other_opening and opening != other_opening:
        raise DataError(f"{where}: chosen and rejected open with different messages; both must answer the same prompt.")
    given = row.get("prompt")
    if given is None and not opening:
        given = cell(row, ("prompt",), "prompt", where)
    prompt = _prompt(opening if given is None or opening else given, row.get("system"), where)
    if preferred.strip() == other.strip():
        raise DataError(f"{where}: chosen and rejected are the same reply, which prefers nothing; remove the row or correct it.")
    return Pair(prompt=prompt, chosen=preferred, rejected=other)


def _reply(value: Any, where: str) -> tuple[list[Any], str]:
    """A reply, and the messages before it where it comes as a whole conversation."""
    if isinstance(value, str) or value is None:
        return [], text_of(value, "reply", where)
    if not isinstance(value, Sequence) or not value:
        raise DataError(f"{where} is {value!r}, not a text or a list of messages.")
    *before, last = value
    if role_of(last, where) != "assistant":
        raise DataError(f"{where} does not end with a message of the assistant.")
    return before, text_of(cell(last, ("content", "value"), "text", where), "reply", where)


def _prompt(value: Any, system: Any, where: str) -> Prompt:
    if isinstance(value, str):
        return Prompt.of(text_of(value, "prompt", where), system=text_of(system, "system prompt", where) if system else None)
    if not isinstance(value, Sequence) or not value:
        raise DataError(f"{where}: the prompt is {'empty' if not value else repr(value)[:40]}; it must be a text or a list of messages.")
    messages = []
    for message in value:
        role = role_of(message, where) if isinstance(message, Mapping) else None
        if role is None:
            raise DataError(f"{where}: every message of the prompt needs a role (system, user or assistant) and a content.")
        messages.append((role, text_of(cell(message, ("content", "value"), "text", where), "prompt", where)))
    if messages[0][0] == "system":
        system = messages.pop(0)[1]
    if not messages or messages[-1][0] != "user" or any(role == "system" for role, _ in messages):
        raise DataError(f"{where}: the prompt must be a conversation (system first) that ends with the user.")
    return Prompt(messages=tuple(messages), system=system or None)
