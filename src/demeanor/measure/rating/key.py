"""The key of a rating sheet: which item is which, and the names of its files."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ...behaviours import SetName
from ...errors import DataError
from ...stats.score import Better

RATINGS, PAGE, KEY = "ratings.csv", "sheet.html", "key.json"
COLUMNS = ("item", "prompt", "reply", "rating")


class KeyPair(BaseModel):
    """The items that are one pair, and the prompt set it is from."""

    model_config = ConfigDict(extra="forbid")
    set: SetName
    base: str
    controlled: str


class Key(BaseModel):
    """`key.json`, as written."""

    model_config = ConfigDict(extra="forbid")
    behaviour: str
    control: str
    question: str
    better: Better
    seed: int  # by which the prompts were drawn
    secret: str = ""  # from which the order of the sheet follows; sheets of earlier versions have none
    digest: str
    identical: int
    pairs: list[KeyPair]

    def items(self) -> set[str]:
        return {item for pair in self.pairs for item in (pair.base, pair.controlled)}


def prefix(digest: str) -> str:
    """What the names of all items of one sheet begin with."""
    return f"r{digest[:8]}_"


def read_key(folder: Path) -> Key:
    path = folder / KEY
    if not path.is_file():
        raise DataError(f"{folder} has no {KEY}; name the folder that the rating sheet was written to.")
    try:
        return Key.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{path} is not the key of a rating sheet ({place + ': ' if place else ''}{first['msg']}); restore it, or write a new sheet."
        ) from error
