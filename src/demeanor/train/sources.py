"""Where training data comes from: files and Hub data sets, mixed by weight."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..behaviours import SET_NAMES, Behaviour, Prompt
from ..errors import DataError
from ..io.display import shown
from ..io.row_files import PACKED, READERS, read_rows
from ..io.tables import content_of, dataset_rows
from ..progress import say, warn
from .conversations import Conversation

T = TypeVar("T")
KINDS = (*READERS, ".parquet", *PACKED)
ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}


def split_weight(named: str, signed: bool = False) -> tuple[str, float | None]:
    """`NAME:WEIGHT` as its parts; None where no weight was given. DataError for one that is not above 0 (`signed`: for 0)."""
    name, colon, number = named.rpartition(":")
    if not colon or not name:
        return named, None
    try:
        weight = float(number)
    except ValueError:
        return named, None
    if not 0 < (abs(weight) if signed else weight) < float("inf"):
        raise DataError(f"{named}: a weight is a number {'other than' if signed else 'above'} 0, not {number}.")
    return name, weight


def rows_of(name: str) -> list[Any]:
    """The rows of a file, or of the train split of a Hub data set."""
    path = Path(name)
    if path.exists():
        rows = read_rows(path)
    elif path.suffix.lower() in KINDS or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise DataError(f"There is no file {name}, and a Hub data set has the form owner/name.")
    else:
        rows = dataset_rows(name, None, "train", None)
    if not rows:
        raise DataError(f"{name} holds no rows; give at least one.")
    return rows


def mixed(named: Sequence[tuple[str, float | None, Sequence[T]]], seed: int) -> list[T]:
    """Rows of several sources (name, weight, rows), shuffled.

    Without weights every row is used. With weights (1 where a source has none) as many as there are in those proportions
    without using a row twice; what is left out is told.
    """
    rng = random.Random(seed)
    shares = [1.0 if weight is None else weight for _, weight, _ in named]
    unit = min(len(rows) / share for (_, _, rows), share in zip(named, shares))
    kept: list[T] = []
    for (name, _, rows), share in zip(named, shares):
        count = len(rows) if all(weight is None for _, weight, _ in named) else max(1, round(unit * share))
        if count < len(rows):
            say(f"{name}: {count} of {len(rows)} rows are used, for the weights.")
        kept += rng.sample(list(rows), count) if count < len(rows) else list(rows)
    rng.shuffle(kept)
    return kept


def cell(row: Any, names: Sequence[str], what: str, where: str) -> Any:
    """The value in the first of these columns that the row has; DataError where it has none of them."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is {type(row).__name__}, not an object with columns.")
    column = next((name for name in names if name in row), None)
    if column is None:
        raise DataError(f"{where} has no column for the {what} ({' or '.join(names)}); it has {', '.join(map(repr, row)) or 'none'}.")
    return row[column]


def blank(value: Any) -> bool:
    """Whether a system message says nothing, as it often does in chat data."""
    return value is None or (isinstance(value, (str, Sequence)) and not (value.strip() if isinstance(value, str) else value))


def text_of(value: Any, what: str, where: str) -> str:
    """A text, or the texts of a list of content parts. DataError for anything else, and for an empty one."""
    value = content_of(value, where)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{where}: the {what} is {'empty' if value in (None, '') or isinstance(value, str) else shown(value, 40)}; it must be a text."
        )
    return value


def role_of(message: Any, where: str) -> str | None:
    """system, user or assistant, however a message names it; None for any other."""
    return ROLES.get(str(cell(message, ("role", "from"), "role", where)).strip().lower())


def conversation(messages: Any, where: str) -> Conversation:
    """A list of {role, content} (or {from, value}); turns of one role in a row become one. DataError for what is none."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise DataError(f"{where}: the conversation is {shown(messages, 40) if messages else 'empty'}; it must be a list of messages with role and content.")
    system, turns = None, []
    for number, message in enumerate(messages):
        here = f"{where}, message {number + 1}"
        role = role_of(message, here)
        content = cell(message, ("content", "value"), "text", here)
        if role == "system" and not number and blank(content):
            continue
        content = text_of(content, "content", here)
        if role is None or (role == "system" and number):
            raise DataError(
                f"{here} has the role {cell(message, ('role', 'from'), 'role', here)!r:.40}; roles are system (first), user and assistant."
            )
        if role == "system":
            system = content
        else:
            turns.append((role, content))
    return joined(turns, system, where)


def joined(turns: Sequence[tuple[str, str]], system: str | None, where: str) -> Conversation:
    """Turns as a conversation that a chat template takes: opened by the user, turn about, with something to learn."""
    made: list[tuple[str, str]] = []
    for role, content in turns:
        if made and made[-1][0] == role:
            made[-1] = (role, f"{made[-1][1]}\n{content}")
        else:
            made.append((role, content))
    if not made or made[0][0] != "user":
        raise DataError(
            f"{where}: the conversation {'has no turns' if not made else 'opens with the assistant'}; it must open with the user."
        )
    if len(made) < 2:
        raise DataError(f"{where}: no turn of the assistant is there to learn; remove the conversation or complete it.")
    return Conversation(tuple(made), system)


class Reserved:
    """The prompts a behaviour is measured on, which training must not see."""

    def __init__(self, behaviour: Behaviour | None) -> None:
        prompts = [prompt for name in SET_NAMES for prompt in behaviour.set(name, "test")] if behaviour is not None else []
        self.texts = {_plain(prompt.text) for prompt in prompts}
        self.dropped = 0

    def without(self, rows: Sequence[T], users: Any, what: str) -> list[T]:
        """The rows in which the user says none of them; `users` gives what the user says in a row. Counted aloud."""
        kept = [row for row in rows if not any(_plain(text) in self.texts for text in users(row))]
        self.dropped += len(rows) - len(kept)
        if len(kept) < len(rows):
            warn(f"{len(rows) - len(kept)} of {len(rows)} {what} hold a prompt that is measured on, and are left out.")
        if not kept:
            raise DataError(f"All {len(rows)} {what} hold prompts that are measured on; nothing is left to train on.")
        return kept


def said_by_user(of: Conversation | Prompt) -> list[str]:
    turns = of.turns if isinstance(of, Conversation) else of.messages
    return [content for role, content in turns if role == "user"]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
