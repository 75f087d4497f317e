"""Whether a reply gives a known answer."""

from __future__ import annotations

import re

from ..models.thinking import spoken


def _words(text: str) -> list[str]:
    # A number keeps its sign, point and commas: "7" is not in "7.5".
    return re.findall(r"(?<!\w)-?\d+(?:[.,]\d+)*|\w+|[^\w\s]", text.lower().replace("\u2019", "'"))


def is_right(reply: str, answer: str) -> bool:
    """Whether the answer's words and signs stand in the reply, whole and in a row; case and spacing do not matter.

    "7" is right in "that makes 7 ." and not in "17" or "7.5". A full sentence as the answer must be there in full;
    an answer without a word or sign is never right, nor is what was only thought.
    """
    given, expected = _words(spoken(reply)), _words(answer)
    while len(expected) > 1 and expected[-1] in ".!":  # how a sentence ends is not part of the answer
        expected.pop()
    return bool(expected) and any(given[start : start + len(expected)] == expected for start in range(len(given) - len(expected) + 1))
