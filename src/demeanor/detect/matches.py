r"""Behaviours told by the words of a reply, with no code: phrases it holds or lacks, and a regular expression.

A behaviour file says, for example, `detect: {matches: {pattern: '\d+ plus \d+ is \d+'}}`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

from ..behaviours import Prompt
from ..errors import DataError
from .openings import normalised
from .registry import detector

Where = Literal["anywhere", "opening"]
# "can't" is a word of its own, and so is "7.5": a reply with either does not hold the phrase "can" or "7".
_WORD = re.compile(r"\d+(?:[.,]\d+)+|\w+(?:'\w+)*|[^\w\s]")
_MARKS = "\"'\u201c\u201d*#>"  # of quotation and emphasis, which may stand before the first word


class Matches:
    """Probability 1 where every condition that was given holds, 0 elsewhere.

    `holds`, `every` and `lacks` are phrases: the reply holds one of the first, all of the second, none of the third.
    Words are compared whole and in a row, whatever their case and spacing; the pattern sees the reply as it was
    written, without the space around it, and ignores case. With where="opening", each of them is looked for at the
    reply's beginning only.
    """

    def __init__(
        self, holds: Sequence[str], every: Sequence[str], lacks: Sequence[str], pattern: re.Pattern[str] | None, where: Where
    ) -> None:
        self.holds, self.every, self.lacks = (tuple(map(spaced_words, phrases)) for phrases in (holds, every, lacks))
        self.pattern, self.where = pattern, where

    def probabilities(self, replies: Sequence[str], prompts: Sequence[Prompt]) -> list[float]:
        """1.0 or 0.0 per reply; the prompts are not looked at."""
        return [float(self._fits(reply)) for reply in replies]

    def _fits(self, reply: str) -> bool:
        words = spaced_words(reply)
        return (
            (not self.holds or any(self._found(phrase, words) for phrase in self.holds))
            and all(self._found(phrase, words) for phrase in self.every)
            and not any(self._found(phrase, words) for phrase in self.lacks)
            and (self.pattern is None or self._matched(self.pattern, reply.strip()))
        )

    def _found(self, phrase: str, words: str) -> bool:
        if self.where == "opening":
            return words.startswith(phrase) or words.lstrip(f"{_MARKS} ").startswith(phrase.lstrip())
        return phrase in words

    def _matched(self, pattern: re.Pattern[str], reply: str) -> bool:
        return (pattern.match(reply) if self.where == "opening" else pattern.search(reply)) is not None


def spaced_words(text: str) -> str:
    """The words and signs of a text, with one space before and after each, so that a phrase is found whole or not at all."""
    return f" {' '.join(_WORD.findall(normalised(text)))} "


@detector("matches")
def matches(
    any: Sequence[str] = (),
    all: Sequence[str] = (),
    none: Sequence[str] = (),
    pattern: str | None = None,
    where: Where = "anywhere",
) -> Matches:
    """Replies that hold one of `any`, every one of `all` and none of `none`, and that `pattern` matches.

    What was not given does not count; DataError where nothing was, a list is empty or the pattern is not valid.
    """
    holds, every, lacks = _phrases("any", any), _phrases("all", all), _phrases("none", none)
    if pattern is None and not (holds or every or lacks):
        raise DataError("The detector 'matches' looks for nothing; give it at least one of any, all, none and pattern.")
    if where not in get_args(Where):
        raise DataError(f"The detector 'matches' does not know where={where!r}; use anywhere or opening.")
    return Matches(holds, every, lacks, None if pattern is None else _compiled(pattern), where)


def _phrases(name: str, given: Any) -> tuple[str, ...]:
    """A checked list of phrases; a single text is a list of one, and the default, an empty tuple, is no condition."""
    if given == () and isinstance(given, tuple):
        return ()
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, (list, tuple)) or not listed:
        raise DataError(f"The detector 'matches' takes {name!r} as a list of at least one phrase, not {given!r}.")
    wrong = [phrase for phrase in listed if not isinstance(phrase, str) or not phrase.strip()]
    if wrong:
        raise DataError(f"The detector 'matches' was given {wrong[0]!r} in {name!r}, which is not a phrase; put text in quotes there.")
    return tuple(listed)


def _compiled(pattern: Any) -> re.Pattern[str]:
    if not isinstance(pattern, str) or not pattern:
        raise DataError(f"The detector 'matches' takes its pattern as a regular expression in quotes, not {pattern!r}.")
    try:
        return re.compile(pattern, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        raise DataError(f"The pattern {pattern!r} of the detector 'matches' is not a valid regular expression: {error}.") from error
