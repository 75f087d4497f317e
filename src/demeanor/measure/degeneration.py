"""What goes wrong with replies themselves: repetition, emptiness, length, another script.

These stand beside every rate because a falling rate can be any of them: a model that repeats itself, says nothing or
answers in another script shows few behaviours.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import lru_cache

from ..models import Reply
from ..models.thinking import spoken
from ..stats.score import Better

GRAM = 4  # words in a row that must not come again


def repetition(text: str) -> float:
    """The share of a text's runs of four words that came before in it; 0 for texts of fewer than five words."""
    words = text.split()
    grams = [tuple(words[at : at + GRAM]) for at in range(len(words) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@lru_cache(maxsize=4096)
def _latin(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(("LATIN", "FULLWIDTH LATIN", "FEMININE", "MASCULINE"))


def non_latin(text: str) -> float:
    """The share of a text's letters that are outside the Latin script; 0 for texts without letters."""
    letters = [character for character in text if character.isalpha()]
    return sum(not _latin(letter) for letter in letters) / len(letters) if letters else 0.0


# Every score of which a mean over replies is taken: its name, what it is of a reply, and which way is better.
OF_REPLIES: tuple[tuple[str, Callable[[Reply], float], Better], ...] = (
    ("repetition", lambda reply: repetition(spoken(reply.text)), "lower"),
    ("other_script", lambda reply: float(non_latin(spoken(reply.text)) > 0.5), "lower"),
    ("empty", lambda reply: float(not spoken(reply.text).strip()), "lower"),
    ("length", lambda reply: float(len(reply.ids)), "neither"),
)
