"""Writing a blind rating sheet."""

from __future__ import annotations

import hashlib
import json
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import zip_longest
from pathlib import Path

from ...behaviours import SET_NAMES, Behaviour, Prompt, SetName
from ...errors import DataError
from ...io.atomic import new_folder
from ...io.csv_files import csv_line
from ...progress import warn
from ..observation import Observation
from .key import COLUMNS, KEY, PAGE, RATINGS, Key, KeyPair, prefix

QUESTION = "How good is this reply to the prompt?"
# What 1, 2, 3, 4 and 5 mean: of a behaviour's own question, and of the one above.
DEGREES = ("not at all", "a little", "partly", "mostly", "entirely")
QUALITIES = ("very bad", "bad", "middling", "good", "very good")


@dataclass(frozen=True)
class Sheet:
    """What was written: the folder, the digest of its items, how many pairs of each set, and how many prompts were left out as unchanged."""

    folder: Path
    digest: str
    pairs: Mapping[SetName, int]
    identical: int

    def __str__(self) -> str:
        count = sum(self.pairs.values())
        sets = ", ".join(f"{name} {number}" for name, number in self.pairs.items())
        return (
            f"{self.folder}: {2 * count} replies to rate, in {count} pairs ({sets}). "
            f"Give {PAGE} or {RATINGS} to whoever rates; {KEY} says which reply is which and stays with you."
        )


@dataclass(frozen=True)
class _Pair:
    """A prompt and its replies: (base, controlled)."""

    set: SetName
    prompt: Prompt
    replies: tuple[str, str]

    @property
    def changed(self) -> bool:
        # Space around a reply cannot be seen, so nobody could rate it.
        return self.replies[0].strip() != self.replies[1].strip()


@dataclass(frozen=True)
class _Item:
    """One reply as the sheet shows it. Holds nothing that says which of a pair it is."""

    name: str
    prompt: str
    reply: str


def write_sheet(
    folder: Path, behaviour: Behaviour, base: Observation, controlled: Observation, control: str, *, pairs: int = 30, seed: int = 0,
    secret: str | None = None,
) -> Sheet:  # fmt: skip
    """A new folder with a blind sheet for up to `pairs` prompts: base and controlled reply as two items, in an order that tells nothing.

    The prompts are drawn by `seed`, from each prompt set in turn. Their order, and which reply of two comes first, follow from `secret`,
    which is drawn anew for every sheet and kept in its key alone: whoever has the sheet and this program cannot compute them. Prompts with twice the same reply are left out and
    counted aloud. Raises DataError when the folder exists, when the observations are of different prompts, or when
    nothing is left to rate.
    """
    if pairs < 1:
        raise DataError(f"A rating sheet of {pairs} pairs cannot be made; ask for at least one.")
    candidates = _pairs(base, controlled)
    drawn = _draw([pair for pair in candidates if pair.changed], pairs, seed)
    if not drawn:
        reason = f"all {len(candidates)} replies are the same with {control} as without it" if candidates else "there are no prompts"
        raise DataError(f"Nothing can be rated for {behaviour.name!r}: {reason}; use a stronger control, or other prompts.")
    asked = behaviour.questions[0] if behaviour.questions else None
    own = behaviour.words.ask or (asked.ask if asked else None)  # the questions are in words for the model, which people may find odd
    question, scale = (own, DEGREES) if own else (QUESTION, QUALITIES)
    secret = secrets.token_hex(16) if secret is None else secret
    order = _order(drawn, secret)
    texts = [(_shown(drawn[number].prompt), drawn[number].replies[half]) for number, half in order]
    digest = hashlib.sha256(json.dumps([question, texts]).encode()).hexdigest()
    items = [_Item(name, *text) for name, text in zip(_names(digest, len(texts)), texts)]
    placed = {place: item.name for place, item in zip(order, items)}
    key = Key(
        behaviour=behaviour.name, control=control, question=question, better="lower" if own and (asked is None or asked.want == "no") else "higher",
        seed=seed, secret=secret, digest=digest, identical=sum(not pair.changed for pair in candidates),
        pairs=[KeyPair(set=pair.set, base=placed[n, 0], controlled=placed[n, 1]) for n, pair in enumerate(drawn)],
    )  # fmt: skip
    with new_folder(folder) as work:
        _write(work / RATINGS, "\ufeff" + csv_line(COLUMNS) + "".join(map(_unrated, items)))
        _write(work / PAGE, _page(items, question, scale, digest))
        _write(work / KEY, key.model_dump_json(indent=2) + "\n")
    _tell(key, len(candidates), pairs)
    return Sheet(folder, digest, {name: n for name in SET_NAMES if (n := sum(pair.set == name for pair in drawn))}, key.identical)


def _pairs(base: Observation, controlled: Observation) -> list[_Pair]:
    """Every prompt of both observations, with its two replies."""
    pairs = []
    for name in SET_NAMES:
        was, now = base.sets[name], controlled.sets[name]
        if [outcome.prompt for outcome in was] != [outcome.prompt for outcome in now]:
            raise DataError(
                f"The two observations are of different {name!r} prompts; observe the same prompts with and without the control."
            )
        pairs += [_Pair(name, one.prompt, (one.reply.text, other.reply.text)) for one, other in zip(was, now)]
    return pairs


def _draw(pairs: Sequence[_Pair], count: int, seed: int) -> list[_Pair]:
    """Up to `count` pairs, one of each set in turn for as long as it has any."""
    rng = random.Random(seed)
    sets = [[pair for pair in pairs if pair.set == name] for name in SET_NAMES]
    turns = zip_longest(*(rng.sample(pairs, len(pairs)) for pairs in sets))
    return [pair for turn in turns for pair in turn if pair is not None][:count]


def _order(pairs: Sequence[_Pair], secret: str) -> list[tuple[int, int]]:
    """(pair, half) of every item in the order of the sheet.

    The replies have a part in it, without saying which is which: were it the secret alone, sheets of one size and one secret would all
    have the same order, and who has seen one key would know the others.
    """
    rng = random.Random(json.dumps([secret, [sorted(pair.replies) for pair in pairs]]))
    order = [(number, half) for number in range(len(pairs)) for half in (0, 1)]
    rng.shuffle(order)
    return order


def _names(digest: str, count: int) -> list[str]:
    """Names that say which sheet an item is from and where it stands there; no spreadsheet takes them for a number or a date."""
    return [f"{prefix(digest)}{number:0{len(str(count))}}" for number in range(1, count + 1)]


def _shown(prompt: Prompt) -> str:
    """All that was said before the reply; the roles only where it is more than one message."""
    turns = [*prompt.messages, *([("assistant", prompt.prefill)] if prompt.prefill else [])]
    if prompt.system is not None:
        turns.insert(0, ("system", prompt.system))
    return "\n\n".join(f"{role}: {text}" for role, text in turns) if len(turns) > 1 else turns[0][1]


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")


def _unrated(item: _Item) -> str:
    return csv_line((item.name, item.prompt, item.reply, ""))


def _page(items: Sequence[_Item], question: str, scale: Sequence[str], digest: str) -> str:
    """The page, with the items as data: the page shows them as text, whatever they hold."""
    # `line` is an item's line in the file that the page saves, up to the rating, so that only this module writes CSV.
    shown = [{"item": i.name, "prompt": i.prompt, "reply": i.reply, "line": _unrated(i).removesuffix("\r\n")} for i in items]
    data = {"digest": digest, "question": question, "scale": scale, "file": RATINGS, "header": csv_line(COLUMNS), "items": shown}
    text = json.dumps(data)
    for mark in "<>&":  # nothing in a reply may end the element that holds it, or open another
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    template = (resources.files(__package__) / "sheet.html").read_text(encoding="utf-8")
    return template.replace("__SHEET__", text, 1)


def _tell(key: Key, candidates: int, asked_for: int) -> None:
    if key.identical:
        warn(f"{key.identical} of {candidates} prompts have the same reply with {key.control} as without it and are left out of the sheet.")
    if len(key.pairs) < asked_for:
        warn(f"The sheet has {len(key.pairs)} of the {asked_for} pairs asked for: no other reply was changed.")
