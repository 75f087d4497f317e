"""Prompts: what is said to a model, and how rows of data become them.

Every row becomes a prompt or the source is refused: a missing column, an empty prompt or an empty source is an error
that names the place.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import DataError, mistaken
from ..io.display import shown
from ..io.tables import content_of, value_of
from ..progress import warn

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
# Shares of a set that fall into train and val; the rest is test.
TRAIN_SHARE, VAL_SHARE = 0.5, 0.25

Message = tuple[str, str]  # (role, content)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is said to a model. Rendered only by the model's chat template, or as plain text without one.

    `reply` is data (a text with or without the behaviour), `answer` what a right reply holds.
    """

    messages: tuple[Message, ...]
    system: str | None = None
    prefill: str = ""
    reply: str | None = None
    answer: str | None = None
    pair: tuple[Message, ...] | None = None  # what decides its split instead: the prompt it corresponds to, or its own reply

    def __post_init__(self) -> None:
        if self.system is not None and isinstance(self.system, str) and not self.system.strip():
            object.__setattr__(self, "system", None)  # an empty system prompt is none
        if not isinstance(self.messages, tuple) or not all(_is_message(message) for message in self.messages):
            raise DataError(
                f"The messages of a Prompt are a tuple of (role, text), not {shown(self.messages)}; a single text is made one by Prompt.of(text)."
            )

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
        """Where hashing the messages puts it: independent of file, order and the other prompts.

        The system prompt does not count: sets that differ in it alone ask the same questions, which must not be in
        train on one side and in test on the other.
        """
        share = self.share
        return "train" if share < TRAIN_SHARE else "val" if share < TRAIN_SHARE + VAL_SHARE else "test"

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes it the same prompt as another: who says what under which system prompt, however it is typed."""
        return (_alike_text(self.system or ""), _alike(self.messages))

    @property
    def share(self) -> float:
        """The hash behind the split, from 0 to 1."""
        key = json.dumps([None, _alike(self.pair or self.messages)], ensure_ascii=False)  # None: so that places never change
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def _alike_text(text: str) -> str:
    """The same for texts that look the same: space around them and how Unicode composes letters do not count."""
    return unicodedata.normalize("NFC", text).strip()


def _alike(messages: Iterable[Message]) -> tuple[Message, ...]:
    return tuple((role, _alike_text(text)) for role, text in messages)


def _is_message(message: object) -> bool:
    return isinstance(message, tuple) and len(message) == 2 and all(isinstance(part, str) for part in message)


def as_prompt(text: str | Prompt) -> Prompt:
    """A text as a prompt of one user message. Raises DataError for what is neither a text nor a prompt."""
    if isinstance(text, str):
        return Prompt.of(text)
    if not isinstance(text, Prompt):
        raise DataError(mistaken("A prompt", text, "give a text or a Prompt"))
    return text


def as_prompts(texts: Iterable[str | Prompt]) -> list[Prompt]:
    """Several texts or prompts. Raises DataError for a single one, whose letters would be so many prompts, and for what is no prompt."""
    if isinstance(texts, (str, bytes, Prompt)) or not isinstance(texts, Iterable):
        raise DataError(mistaken("A list of prompts", texts, "put a single prompt in a list, as in [prompt]"))
    return [as_prompt(text) for text in texts]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a source hold what, and what holds for all of its rows.

    `ask` is the user message of rows that have only a reply; `every_system` the system prompt of all rows.
    """

    prompt: str = "prompt"
    answer: str | None = None
    reply: str | None = None
    system: str | None = None
    ask: str | None = None
    every_system: str | None = None


ROLES = ("user", "assistant")


def prompts_from_rows(rows: Sequence[Any] | Mapping[int, Any], columns: Columns, where: str) -> list[Prompt]:
    """Rows are strings, mappings from column to value, or prompts, in order or by number; `where` names their source in errors."""
    if not rows:
        raise DataError(f"{where} holds no prompts; give at least one row.")
    numbered = rows.items() if isinstance(rows, Mapping) else enumerate(rows, start=1)
    return [_prompt(row, columns, f"{where}, row {number}") for number, row in numbered]


def asked(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Every prompt once, whatever replies came with it."""
    return list({prompt.key: prompt for prompt in prompts}.values())


def sampled(prompts: Sequence[Prompt], limit: int | None = None) -> list[Prompt]:
    """At most `limit` prompts, in order: a fair sample by the hash that makes the split, which knows nothing of the order of rows."""
    if limit is None or limit >= len(prompts):
        return list(prompts)
    kept = sorted(range(len(prompts)), key=lambda number: (prompts[number].share, number))[:limit]
    return [prompts[number] for number in sorted(kept)]


def distinct(prompts: Sequence[Prompt], where: str) -> tuple[Prompt, ...]:
    """Repeated prompts once, counted aloud. The same prompt with another reply is another row of data."""
    kept = {(prompt.key, prompt.reply): prompt for prompt in prompts}
    if len(kept) < len(prompts):
        warn(f"{where}: {len(prompts) - len(kept)} of {len(prompts)} prompts repeat another and are counted once.")
    return tuple(kept.values())


def _prompt(row: Any, columns: Columns, where: str) -> Prompt:
    if isinstance(row, Prompt):
        return row
    if isinstance(row, str):
        needless = (columns.reply if columns.ask is None else None) or columns.answer or columns.system
        if needless is not None:
            raise DataError(
                f"{where} is a plain text, which has no column {needless!r}; leave that key out (or, for replies, name the message they answer with ask)."
            )
        row = {columns.reply if columns.ask and columns.reply else columns.prompt: row}
    if not isinstance(row, dict):
        raise DataError(f"{where} is {type(row).__name__}, not a text or an object with columns.")
    rest = {name: _cell(row, getattr(columns, name), where) for name in ("answer", "reply", "system")}
    rest["system"] = rest["system"] or _every_system(row, columns, where)
    if columns.reply is not None and rest["reply"] is None:
        raise DataError(f"{where} has no reply in column {columns.reply!r}; remove the row or fill it in.")
    if columns.ask is not None:
        # All such rows answer the same message, so the reply decides the split.
        return Prompt.of(columns.ask, pair=(("assistant", rest["reply"] or ""),), **rest)
    value = value_of(row, columns.prompt, where)
    if isinstance(value, list):
        return _conversation(value, rest, where)
    text = _cell(row, columns.prompt, where)
    if text is None or not text.strip():
        raise DataError(f"{where} has an empty prompt in column {columns.prompt!r}; remove the row or fill it in.")
    return Prompt.of(text, **rest)


def _every_system(row: dict[str, Any], columns: Columns, where: str) -> str | None:
    if columns.every_system in row:
        raise DataError(
            f"{where}: system is the text of a system prompt, and {columns.every_system!r} is a column; name it as system_column."
        )
    return columns.every_system


def _cell(row: dict[str, Any], column: str | None, where: str) -> str | None:
    """One cell as text; None where the column is not asked for or the cell is empty."""
    if column is None:
        return None
    value = value_of(row, column, where)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value != value:
        raise DataError(f"{where}, column {column!r} holds {shown(value)}, which is not text.")
    # Where a column has gaps, readers make 7 a 7.0.
    return _text(str(int(value) if isinstance(value, float) and value.is_integer() else value), where)


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds half a character (a lone surrogate), which no model can read; correct the file.") from error
    return value


def _empty(content: Any) -> bool:
    return not content or (isinstance(content, str) and not content.strip())


def _conversation(messages: list[Any], rest: dict[str, Any], where: str) -> Prompt:
    turns: list[tuple[Any, str]] = []
    for message in messages:
        content = content_of(message.get("content"), where) if isinstance(message, dict) else None
        if not turns and isinstance(message, dict) and message.get("role") == "system" and _empty(content):
            content = ""
        elif not isinstance(content, str) or not content.strip():
            raise DataError(f"{where}: every message needs a role and a content that is text.")
        turns.append((message.get("role"), _text(content, where)))
    if turns and turns[0][0] == "system":
        own = turns.pop(0)[1]
        rest = {**rest, "system": own if own.strip() else rest["system"]}
    wrong = next((role for role, _ in turns if role not in ROLES), None)
    if wrong is not None or not turns or turns[-1][0] != "user":
        told = f"has the role {shown(wrong)}; roles are" if wrong is not None else "must end with a user message; roles are"
        raise DataError(f"{where}: a conversation {told} system (first), user and assistant.")
    return Prompt(messages=tuple(turns), **rest)
