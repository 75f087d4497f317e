"""A small battery for any chat model: counting, copying, arithmetic, spelling and order, graded by answers that are known.

Two dozen questions a skill, made from one seed, each answered within a few tokens. It is no benchmark of models: it tells whether a
control costs one of them what it could do before, and for that the same questions before and after are enough.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

from ..behaviours import Prompt
from ..models import Session
from .answers import is_right
from .condition import Condition
from .ledger import Ledger, kept_replies

NAME = "battery"
ITEMS = 24  # of each skill
TOKENS = 24  # of a reply
SEED = 0
WORDS = (
    "lamp", "river", "bread", "chair", "stone", "cloud", "horse", "train", "spoon", "grass", "paper", "winter", "garden", "candle", "bridge",
    "mirror", "pencil", "basket", "window", "orange", "silver", "market", "ladder", "button", "kettle", "forest", "island", "violin", "pocket", "saddle",
)  # fmt: skip
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December")
Right = dict[str, list[bool]]  # by skill, a value per question


@dataclass(frozen=True)
class Item:
    """A question of one skill; a reply that holds one of `answers` is right."""

    skill: str
    ask: str
    answers: tuple[str, ...]

    @property
    def prompt(self) -> Prompt:
        return Prompt.of(self.ask)

    def right(self, reply: str) -> bool:
        """Whether an answer stands in the reply; how its parts are separated does not matter."""
        return any(is_right(_unseparated(reply), _unseparated(answer)) for answer in self.answers)


@lru_cache(maxsize=1)
def items() -> tuple[Item, ...]:
    """All questions, skill by skill; the same ones always."""
    rng = random.Random(SEED)
    made: list[Item] = []
    for skill, ask in SKILLS.items():
        asked: dict[str, Item] = {}
        while len(asked) < ITEMS:
            text, *answers = ask(rng, len(asked))
            asked.setdefault(text, Item(skill, text, tuple(answers)))
        made += asked.values()
    return tuple(made)


def battery(asked: Session | Condition) -> Right:
    """Which of its questions a model answers rightly, with whatever acts on it: by skill, in the same order always."""
    condition = asked if isinstance(asked, Condition) else Condition(asked)
    return asked_battery(Ledger(condition.session), condition)


def asked_battery(base: Ledger, condition: Condition) -> Right:
    """The same; the untouched model of a ledger is asked once."""
    prompts = [item.prompt for item in items()]
    if condition == Condition(base.session):
        return graded([reply.text for reply in base.replies(prompts, TOKENS)])
    return graded([reply.text for reply in kept_replies(base.journal, condition, prompts, TOKENS)])


def paired(was: Right, now: Right) -> dict[str, tuple[list[bool], list[bool]]]:
    """Two askings as scores by name: all questions together, then each skill."""
    whole = {NAME: (list(chain(*was.values())), list(chain(*now.values())))}
    return whole | {f"{NAME}_{skill}": (was[skill], now[skill]) for skill in SKILLS}


def graded(replies: Sequence[str]) -> Right:
    """Replies to all questions, right or wrong, by skill."""
    right: Right = {skill: [] for skill in SKILLS}
    for item, reply in zip(items(), replies, strict=True):
        right[item.skill].append(item.right(reply))
    return right


def _unseparated(text: str) -> str:
    """A text without what stands between the parts of a list."""
    return re.sub(r"[\W_]+|\band\b", " ", text.lower())


def _counting(rng: random.Random, number: int) -> tuple[str, ...]:
    if number % 2:
        count = rng.randint(2, 9)
        word = rng.choice(WORDS)
        return f"How many words are in this list: {', '.join([word] * count)}?", str(count), NUMBERS[count]
    start, length = rng.randint(1, 30), rng.randint(4, 6)
    return f"Count from {start} to {start + length - 1}.", " ".join(str(start + step) for step in range(length))


def _copying(rng: random.Random, number: int) -> tuple[str, ...]:
    one, two, three = rng.sample(WORDS, 3)
    text = (f"{one} {two} {three}", f"the {one} is behind the {two}", f"{one} {rng.randint(10, 99)} {two}")[number % 3]
    return f"Repeat this exactly: {text}", text


def _arithmetic(rng: random.Random, number: int) -> tuple[str, ...]:
    one, two = rng.sample(range(2, 20), 2)
    if number % 3 == 0:
        return f"What is {one} plus {two}?", str(one + two)
    if number % 3 == 1:  # what remains is none of the numbers that were said
        return f"What is {one + two} minus {two}?", str(one)
    return f"What is {one} times {two % 8 + 2}?", str(one * (two % 8 + 2))


def _spelling(rng: random.Random, number: int) -> tuple[str, ...]:
    word = rng.choice(WORDS)
    if number % 2:
        return f"Spell the word {word} letter by letter, with hyphens.", " ".join(word)
    which, letter = (("first", word[0]), ("last", word[-1]))[number // 2 % 2]
    return f"What is the {which} letter of the word {word}?", letter


def _order(rng: random.Random, number: int) -> tuple[str, ...]:
    if number % 3 == 0:
        values = rng.sample(range(1, 60), 4)
        if values == sorted(values):
            values.reverse()
        return f"Sort these numbers from smallest to largest: {', '.join(map(str, values))}", " ".join(map(str, sorted(values)))
    names = DAYS if number % 3 == 1 else MONTHS
    place, step = rng.randrange(len(names)), rng.choice((1, -1))
    return f"Which {'day' if names is DAYS else 'month'} comes {'after' if step > 0 else 'before'} {names[place]}?", names[(place + step) % len(names)]


SKILLS: Mapping[str, Callable[[random.Random, int], tuple[str, ...]]] = {
    "counting": _counting, "copying": _copying, "arithmetic": _arithmetic, "spelling": _spelling, "order": _order,
}  # fmt: skip
