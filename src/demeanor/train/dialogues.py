"""Dialogues with a turn a row, as counter-narrative collections come: dialogue id, turn, role, text."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

from ..errors import DataError
from ..io.display import shown
from .conversations import Conversation
from .sources import ROLES, cell, joined, mixed, rows_of, split_weight, text_of

# The columns' names in DIALOCONAN, then plainer ones.
DIALOGUE, TURN, ROLE, TEXT = ("dialogue_id", "dialogue"), ("turn_id", "turn"), ("type", "role"), ("text", "content")
# There the one who is answered is HS (hate speech), and the one who answers CN (counter-narrative).
SPEAKERS = {"hs": "user", "cn": "assistant", **{name: role for name, role in ROLES.items() if role != "system"}}


def read_dialogues(named: Sequence[str], seed: int) -> dict[str, Conversation]:
    """Dialogues by id, shuffled; DataError names the row or the dialogue that is not one."""
    sources = []
    for each in named:
        name, weight = split_weight(each)
        dialogues = _dialogues(rows_of(name), name)
        sources.append((name, weight, [(f"{name}, {key}" if len(named) > 1 else key, made) for key, made in dialogues.items()]))
    return dict(mixed(sources, seed))


def held_out(dialogues: dict[str, Conversation], share: float) -> tuple[list[Conversation], list[Conversation]]:
    """Training dialogues and held-out ones, by the hash of their ids: independent of order and of the other dialogues."""
    kept: tuple[list[Conversation], list[Conversation]] = ([], [])
    for key, dialogue in dialogues.items():
        place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
        kept[place < share].append(dialogue)
    if not kept[0] or not kept[1]:
        raise DataError(
            f"{len(dialogues)} dialogue{'s' * (len(dialogues) > 1)} cannot be divided into training and held-out ones ({share:g}); give more, or another share."
        )
    return kept


def _dialogues(rows: Sequence[Any], name: str) -> dict[str, Conversation]:
    turns: dict[str, list[tuple[float, str, str]]] = {}
    for number, row in enumerate(rows, start=1):
        where = f"{name}, row {number}"
        key = cell(row, DIALOGUE, "dialogue", where)
        if key in (None, "") or key != key:
            raise DataError(f"{where}: the dialogue id is empty; every turn needs one.")
        turns.setdefault(str(key), []).append(
            (_turn(row, where), _role(row, where), text_of(cell(row, TEXT, "text", where), "text", where))
        )
    return {key: _ordered(said, f"{name}, dialogue {key}") for key, said in turns.items()}


def _ordered(said: list[tuple[float, str, str]], where: str) -> Conversation:
    places = [turn for turn, _, _ in said]
    if len(set(places)) < len(places):
        raise DataError(f"{where} has two turns of the same number; number them in order.")
    return joined([(role, text) for _, role, text in sorted(said)], None, where)


def _turn(row: Any, where: str) -> float:
    value = cell(row, TURN, "turn", where)
    try:
        turn = float(value)
    except (TypeError, ValueError):
        turn = math.nan
    if not math.isfinite(turn):
        raise DataError(f"{where}: the turn is {shown(value)}, which is not a number.")
    return turn


def _role(row: Any, where: str) -> str:
    value = cell(row, ROLE, "role", where)
    role = SPEAKERS.get(str(value).strip().lower())
    if role is None:
        raise DataError(f"{where}: the role is {shown(value)}; it must be user or assistant (or HS or CN).")
    return role
