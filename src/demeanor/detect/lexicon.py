"""Behaviours told by a lexicon: a list of words and phrases, of which enough must stand in the reply.

`detect: {lexicon: {file: rude.txt}}`, or `{phrases: [...]}` in place. `matches` asks whether conditions hold; a lexicon
weighs evidence: phrases may count differently, several weak ones may add up, and a list of any length is a file that
other tools can share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..behaviours import Prompt
from ..errors import DataError
from ..io.claims import refuse_output
from ..io.row_files import TEXT
from .matches import spaced_words
from .registry import detector


class Lexicon:
    """Probability 1 where the weights of all phrases that the reply holds sum to `threshold` or more, 0 elsewhere.

    A phrase counts once however often it is said. Words are compared whole and in a row, whatever their case and spacing.
    """

    def __init__(self, weights: Mapping[str, float], threshold: float) -> None:
        self.weights = {spaced_words(phrase): weight for phrase, weight in weights.items()}
        self.threshold = threshold

    def probabilities(self, replies: Sequence[str], prompts: Sequence[Prompt]) -> list[float]:
        """1.0 or 0.0 per reply; the prompts are not looked at."""
        return [float(self.weight(reply) >= self.threshold) for reply in replies]

    def weight(self, reply: str) -> float:
        """The weights of the phrases that stand in a reply, summed."""
        words = spaced_words(reply)
        return math.fsum(weight for phrase, weight in self.weights.items() if phrase in words)


@detector("lexicon")
def lexicon(phrases: Any = None, file: str | None = None, threshold: float = 1.0) -> Lexicon:
    """Replies that hold phrases of a list, or of a mapping from phrase to weight, or of a text file.

    A file has a phrase a line, with its weight after a tab where that is not 1; empty lines and lines that open with #
    do not count. Its path is relative to the behaviour file. DataError where the list, the file or the threshold is
    not usable.
    """
    if (phrases is None) == (file is None):
        raise DataError("The detector 'lexicon' takes its words from exactly one of phrases and file.")
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 < threshold < math.inf:
        raise DataError(f"The detector 'lexicon' takes a positive number as threshold, not {threshold!r}.")
    where, weights = ("phrases", _listed(phrases)) if file is None else (str(file), _read(Path(str(file))))
    if not weights:
        raise DataError(f"The detector 'lexicon' found no phrase in {where}; give it at least one.")
    for phrase, weight in weights.items():
        if not isinstance(phrase, str) or not phrase.strip():
            raise DataError(f"The detector 'lexicon' was given {phrase!r} in {where}, which is not a phrase; put text in quotes there.")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise DataError(f"The detector 'lexicon' takes a positive number as the weight of {phrase!r} in {where}, not {weight!r}.")
    return Lexicon(weights, float(threshold))


def _listed(phrases: Any) -> dict[Any, Any]:
    if isinstance(phrases, Mapping):
        return dict(phrases)
    if isinstance(phrases, str):
        return {phrases: 1.0}
    if not isinstance(phrases, (list, tuple)):
        raise DataError(f"The detector 'lexicon' takes phrases as a list, or as a mapping to their weights, not {phrases!r}.")
    wrong = next((phrase for phrase in phrases if not isinstance(phrase, str)), None)
    if wrong is not None:
        raise DataError(f"The detector 'lexicon' was given {wrong!r} in phrases, which is not a phrase; put text in quotes there.")
    return dict.fromkeys(phrases, 1.0)


def _read(path: Path) -> dict[str, Any]:
    try:
        refuse_output(path)
        lines = path.read_text(encoding=TEXT).splitlines()
    except OSError as error:
        raise DataError(
            f"The lexicon {path} cannot be read: {error.strerror}; a path in a behaviour file is relative to that file."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"The lexicon {path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    weights: dict[str, Any] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        phrase, _, weight = line.partition("\t")
        try:
            weights[phrase.strip()] = float(weight) if weight.strip() else 1.0
        except ValueError:
            raise DataError(f"{path}, line {number}: {weight.strip()!r} after the tab is not a number, as a weight must be.") from None
    return weights
