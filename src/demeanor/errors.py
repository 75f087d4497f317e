"""What can go wrong, as sentences.

Every error a user can cause is a `DemeanorError` whose message is one sentence that names the thing and
the fix; the command line prints it without a traceback and exits with `exit_code`.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class DemeanorError(Exception):
    """A mistake in the input: printed as one sentence, exit 2."""

    exit_code = 2


def mistaken(meant: str, value: object, fix: str) -> str:
    """The sentence for a value of another kind than is meant, such as swapped arguments."""
    return f"{meant} is meant here, but {type(value).__name__} was given; {fix}."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The one of the known names that was probably meant, in brackets; nothing where none is near."""
    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


class DataError(DemeanorError):
    """A file, column, set or value of the user's data is not usable."""


class ModelError(DemeanorError):
    """A model cannot be loaded, or its files are damaged."""


class WorkersLost(ModelError):
    """The workers that did the work are gone; what they did so far is kept, and may be gone on from."""


class AccountingError(ModelError):
    """The residual stream of a model could not be accounted for, so it must not be edited."""


class ControlError(DemeanorError):
    """A control does not fit the model or the operation asked for."""


class CheckFailed(DemeanorError):
    """Everything was read and run, and the answer is no: exit 1."""

    exit_code = 1


class NoUsableDirection(CheckFailed):
    """The classes do not differ at any site beyond chance."""


class NoCandidate(CheckFailed):
    """Every candidate direction was discarded in selection."""
