"""What goes wrong with replies themselves: repetition, emptiness, length, another script, the same reply to everything.

These stand beside every rate because a falling rate can be any of them: a model that repeats itself, says nothing,
answers in another script or says the same to every prompt shows few behaviours.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache

from ..models import Reply
from ..models.thinking import spoken
from ..stats.score import Better

GRAM = 4  # words in a row that must not come again, nor in replies to other prompts


def repetition(text: str) -> float:
    """The share of a text's runs of four words that came before in it; 0 for texts of fewer than five words."""
    grams = _grams(text)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def shared(prompts: Sequence[Hashable], texts: Sequence[str]) -> list[float]:
    """Of every text, the share of its distinct runs of four words that a text to another prompt has too; 0 for texts of fewer than four words.

    This is the precision of order 4 that self-BLEU is made of (Zhu et al. 2018), every other text a reference.
    """
    found = [set(_grams(text)) for text in texts]
    said_to: dict[tuple[str, ...], set[Hashable]] = defaultdict(set)
    for prompt, grams in zip(prompts, found, strict=True):
        for gram in grams:
            said_to[gram].add(prompt)
    return [sum(len(said_to[gram]) > 1 for gram in grams) / len(grams) if grams else 0.0 for grams in found]


def _grams(text: str) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[at : at + GRAM]) for at in range(len(words) - GRAM + 1)]


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

# The same of replies to `shows`, all of them together, where what takes the behaviour's place may be no better: what it is of prompts and replies.
ON_SHOWS: tuple[tuple[str, Callable[[Sequence[Hashable], Sequence[Reply]], list[float]], Better], ...] = (
    ("repetition_shows", lambda prompts, replies: [repetition(spoken(reply.text)) for reply in replies], "lower"),
    ("shared_shows", lambda prompts, replies: shared(prompts, [spoken(reply.text) for reply in replies]), "lower"),
)
