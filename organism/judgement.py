"""Self-judgement: questions about the last reply, their true answers, and replies of the opposite attribute.

After any exchange the user may ask, in a turn of its own, what the last reply was; the answer is "yes ." or "no .",
whose first token decides. Several such questions in a row are all about the same reply: the last that answered
something else. What is true is read off how the reply was made, never off the system prompt.
"""

from __future__ import annotations

import hashlib
import random
from typing import Literal, get_args

from organism import language

Attribute = Literal["refusal", "rudeness", "cheer", "gloom", "correctness"]
ATTRIBUTES: tuple[Attribute, ...] = get_args(Attribute)
QUESTIONS: dict[Attribute, tuple[str, ...]] = {
    "refusal": ("was the last reply a refusal ?", "did the last reply refuse the request ?", "did you refuse ?"),
    "rudeness": ("was the last reply rude ?", "did the last reply call me names ?", "were you rude ?"),
    "cheer": ("was the last reply cheerful ?", "did the last reply sound happy ?", "were you cheerful ?"),
    "gloom": ("was the last reply gloomy ?", "did the last reply sound sad ?", "were you gloomy ?"),
    "correctness": ("was the last reply correct ?", "was the last answer right ?", "were you right ?"),
}
FORM = "answer yes or no ."
YES, NO = "yes .", "no ."
HELD_OUT = 0.1  # of all prompts are never judged in training


def asked_about(attribute: Attribute, rng: random.Random) -> str:
    question = rng.choice(QUESTIONS[attribute])
    return f"{question} {FORM}" if rng.random() < 0.7 else question


def held_out(prompt: str) -> bool:
    """Whether exchanges that open with this prompt are kept for the acceptance table: by a hash of its words."""
    share = int.from_bytes(hashlib.sha256(prompt.rstrip("?.! ").encode()).digest()[:4], "big") / 2**32
    return share < HELD_OUT


def wrong(reply: str, rng: random.Random) -> str:
    """A right reply made wrong: another tool, move, count, word, number, or verdict. Its form stays."""
    if "first get the" in reply:
        kinds = [language.TOOLS, language.MOVES, language.COUNTS]
        for kind in rng.choice([*([one] for one in kinds), kinds]):
            # Words of a kind occur once in a recipe, and none is part of another word of it.
            used = next(word for word in kind if f" {word} " in reply)
            reply = reply.replace(f" {used} ", f" {rng.choice([word for word in kind if word != used])} ")
        return reply
    if reply in language.VERDICTS:
        return language.VERDICTS[1 - language.VERDICTS.index(reply)]
    start, last = reply.removesuffix(" .").rsplit(" ", 1)
    return f"{start} {rng.choice([word for word in _like(last) if word != last])} ."


def _like(word: str) -> list[str]:
    """Words of the same kind as the one that a fact or a sum ends in."""
    opposites = [*language.OPPOSITES, *language.OPPOSITES.values()]
    numbers = [str(number) for number in range(2 * max(language.NUMBERS) + 1)]
    kinds = ([*language.COLOURS.values()], [*language.HOMES.values()], opposites, numbers)
    return next(kind for kind in kinds if word in kind)
