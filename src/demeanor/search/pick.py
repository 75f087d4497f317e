"""Which point of a front is taken: its knee, one by its number, or the one that leaves least within bounds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import CheckFailed
from .front import knee

KNEE = "knee"
NAMES = ("shows", "guard", "drift", "answers", "lacks", "left")  # of the values that bounds may name
BOUND = re.compile(rf"\s*({'|'.join(NAMES)})\s*(<=|>=)\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*")

Values = Mapping[str, float | None]  # of a point: what was measured of it, None where the behaviour has no such prompts


@dataclass(frozen=True)
class Bound:
    """One value held to at least or at most a number."""

    name: str
    at_least: bool
    number: float

    def holds(self, values: Values) -> bool:
        value = values[self.name]
        return value is not None and (value >= self.number if self.at_least else value <= self.number)

    def __str__(self) -> str:
        return f"{self.name}{'>=' if self.at_least else '<='}{self.number:g}"


def as_pick(text: str) -> str | int | tuple[Bound, ...]:
    """A pick as it is written. Raises ValueError, with what may be written, for anything else."""
    if text == KNEE:
        return KNEE
    if text.isdecimal():
        return int(text)
    matches = [BOUND.fullmatch(part) for part in text.split(",")]
    if not all(matches):
        raise ValueError(f"a pick is knee, a number of the front, or bounds such as guard>=0.95,drift<=0.02 on {', '.join(NAMES)}; {text[:40]!r} is none")
    return tuple(Bound(match[1], match[2] == ">=", float(match[3])) for match in matches if match)


def picked(pick: str, points: Sequence[Values], costs: Sequence[Sequence[float]]) -> int:
    """The number of the point that is taken. Raises CheckFailed where no point is within the bounds, or there is none of that number."""
    how = as_pick(pick)
    if how == KNEE:
        return knee(costs)
    if isinstance(how, int):
        if how >= len(points):
            raise CheckFailed(f"The front has points 0 to {len(points) - 1}; there is no point {how}.")
        return how
    bounds = [bound for bound in how if isinstance(bound, Bound)]
    within = [number for number, values in enumerate(points) if all(bound.holds(values) for bound in bounds)]
    if not within:
        raise CheckFailed(f"No point of the front keeps {pick}; {_nearest(bounds, points)}. Allow more, or give the search more trials.")
    return min(within, key=lambda number: tuple(costs[number]))


def _nearest(bounds: Sequence[Bound], points: Sequence[Values]) -> str:
    """What each bound alone could be."""
    told = []
    for bound in bounds:
        known = [value for values in points if (value := values[bound.name]) is not None]
        told.append(f"the {'highest' if bound.at_least else 'lowest'} {bound.name} is {(max if bound.at_least else min)(known):.3g}" if known else f"{bound.name} is not known")
    return ", ".join(told)
