"""Reading what came back of a rating sheet."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...behaviours import SET_NAMES, SetName
from ...errors import DataError
from ...progress import warn
from ...stats import intervals
from ...stats.score import Better, Score
from .key import COLUMNS, PAGE, RATINGS, Key, KeyPair, prefix, read_key

SEPARATORS = ",;\t"  # of the files that spreadsheet programs save
TEXT = "utf-8-sig"  # with a byte order mark, without which spreadsheet programs misread what is not ASCII
_RATING = re.compile(r"[1-5](?:[.,][0-9]+)?")


@dataclass(frozen=True, kw_only=True)
class Ratings:
    """What the ratings say of the pairs whose replies were both rated.

    `base` and `controlled` are mean ratings from 1 to 5, `difference` is controlled minus base within pairs, over all but
    the guard's and by prompt set (nan and n = 0 where no pair of a set is complete). `share_better` is the share of pairs whose
    controlled reply is rated better, ties counted half: higher, or lower where the question's wanted answer is no.
    `unrated` items, `incomplete` pairs and the prompts that were `identical` and never on the sheet are not in any score.
    """

    behaviour: str
    control: str
    question: str
    base: Score
    controlled: Score
    difference: Score
    share_better: Score
    by_set: Mapping[SetName, Score]
    unrated: int
    incomplete: int
    identical: int

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values; what was not measured is null."""
        scores = {score.name: score.to_json() for score in (self.base, self.controlled, self.difference, self.share_better)}
        counts = {"unrated": self.unrated, "incomplete": self.incomplete, "identical": self.identical}
        names = {"behaviour": self.behaviour, "control": self.control, "question": self.question, "better": self.difference.better}
        return {**names, **scores, "by_set": {name: score.to_json() for name, score in self.by_set.items()}, **counts}

    def __str__(self) -> str:
        lines = [
            f"{self.behaviour}, {self.control}: rated blind from 1 to 5, complete pairs: {self.base.n}",
            f"{self.question} ({self.base.better} is better)",
        ]
        named = [("base", self.base), ("controlled", self.controlled), ("difference", self.difference)]
        named += [(f"  {name}", score) for name, score in self.by_set.items()]
        lines += [f"{name:<16}{score if score.n else 'none'}" for name, score in [*named, ("share better", self.share_better)]]
        lines.append(
            f"Not in these: {self.unrated} unrated replies, {self.incomplete} incomplete pairs, "
            f"{self.identical} prompts whose reply the control did not change."
        )
        return "\n".join(lines)


def read_ratings(folder: Path, ratings: Path | None = None) -> Ratings:
    """What the ratings of a sheet say: those in the folder's `ratings.csv`, or in a file that came back under another name.

    The file may have been through a spreadsheet program. Items without a rating and pairs that miss one are counted
    aloud. Raises DataError, naming the row, for an item or rating that cannot be one, and when no pair is complete.
    """
    key = read_key(folder)
    path = ratings if ratings is not None else folder / RATINGS
    rated = _read_rated(path, key)
    complete = [pair for pair in key.pairs if pair.base in rated and pair.controlled in rated]
    unrated, incomplete = len(key.items()) - len(rated), len(key.pairs) - len(complete)
    if not complete:
        raise DataError(
            f"{path} rates both replies of no pair ({len(rated)} of {len(key.items())} items are rated); "
            f"fill in its column 'rating', or name the file that {PAGE} saved."
        )
    if unrated:
        warn(
            f"{path}: {unrated} of {len(key.items())} items are not rated; {incomplete} of {len(key.pairs)} pairs miss one and are left out."
        )
    return _ratings(key, complete, rated, unrated, incomplete)


def _ratings(key: Key, complete: Sequence[KeyPair], rated: Mapping[str, float], unrated: int, incomplete: int) -> Ratings:
    values = torch.tensor([[rated[pair.base], rated[pair.controlled]] for pair in complete], dtype=torch.float64)
    every = values[:, 1] - values[:, 0]
    sets = [name for name in SET_NAMES if any(pair.set == name for pair in key.pairs)]
    of_set = {name: [number for number, pair in enumerate(complete) if pair.set == name] for name in sets}
    # On guard prompts the behaviour is wanted, so they stand apart: in by_set, and not in the scores of all.
    pooled = [number for number, pair in enumerate(complete) if pair.set != "guard"] or list(range(len(complete)))
    (base, controlled), change = values[pooled].T, every[pooled]
    return Ratings(
        behaviour=key.behaviour,
        control=key.control,
        question=key.question,
        base=intervals.mean("base", base, better=key.better),
        controlled=intervals.mean("controlled", controlled, better=key.better),
        difference=intervals.mean("difference", change, better=key.better),
        share_better=_share((change if key.better == "higher" else -change).tolist()),
        by_set={name: intervals.mean(name, every[rows], better=_better(name, key)) for name, rows in of_set.items()},
        unrated=unrated,
        incomplete=incomplete,
        identical=key.identical,
    )


def _better(name: SetName, key: Key) -> Better:
    """Which way a set's ratings are better: on guard prompts the other way round, for there the behaviour is wanted."""
    return key.better if name != "guard" else "higher" if key.better == "lower" else "neither"


def _share(gains: Sequence[float]) -> Score:
    """The share of gains above zero, ties counted half.

    Its interval is Wilson's, with half a win that is left over not counted for the lower end and counted whole for the
    upper: a bootstrap would be a point where every pair is won.
    """
    wins = sum(1.0 if gain > 0 else 0.5 if gain == 0 else 0.0 for gain in gains)
    low, high = intervals.wilson(math.floor(wins), len(gains))[0], intervals.wilson(math.ceil(wins), len(gains))[1]
    return Score("share_better", wins / len(gains), low, high, len(gains), "higher")


def _read_rated(path: Path, key: Key) -> dict[str, float]:
    """Item to rating, of the items that have one."""
    known = key.items()
    seen: dict[str, int] = {}
    rated: dict[str, float] = {}
    for number, item, rating in _cells(path):
        where = f"{path}, row {number}"
        if item not in known:
            other = re.fullmatch(r"r[0-9a-f]{8}_\d+", item) and not item.startswith(prefix(key.digest))
            problem = (
                "is of another sheet; name the folder of that sheet" if other else "is not on the sheet; leave the column 'item' as it was"
            )
            raise DataError(f"{where}: the item {item!r} {problem}.")
        if item in seen:
            raise DataError(f"{where}: the item {item!r} stands in row {seen[item]} too; keep one of them.")
        seen[item] = number
        if rating:
            rated[item] = _number(rating, where, item)
    return rated


def _number(rating: str, where: str, item: str) -> float:
    value = float(rating.replace(",", ".")) if _RATING.fullmatch(rating) else math.nan
    if not value <= 5:
        raise DataError(f"{where}: the item {item!r} is rated {rating!r}; a rating is a number from 1 to 5, or empty.")
    return value


def _cells(path: Path) -> Iterator[tuple[int, str, str]]:
    """(row, item, rating) of every row that is not blank; rows are counted as spreadsheets do, the header being row 1."""
    if not path.is_file():
        raise DataError(f"There is no file of ratings {path}; name the one that {PAGE} saved, or a filled-in {RATINGS}.")
    # Of other encodings only prompts and replies suffer, which are not read.
    text = path.read_bytes().decode(TEXT, errors="replace")
    try:
        separator = max(SEPARATORS, key=lambda mark: len({"item", "rating"}.intersection(_header(text, mark))))
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file ({error}); save the sheet as CSV.") from error
    header = _header(text, separator)
    for column in ("item", "rating"):
        if header.count(column) != 1:
            count = "more than one" if column in header else "no"
            raise DataError(f"{path} has {count} column {column!r}; its columns are to be {', '.join(COLUMNS)}, saved as CSV.")
    item, rating = header.index("item"), header.index("rating")
    for number, row in enumerate(rows[1:], start=2):
        cells = [cell.strip() for cell in row] + [""] * (len(header) - len(row))  # some programs leave out empty cells at a row's end
        if any(cells):
            yield number, cells[item], cells[rating]


def _header(text: str, separator: str) -> list[str]:
    row = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
    return [cell.strip().lower() for cell in row]
