"""How far the parts of a control get in each other's way: the overlap of the spans they write to or read."""

from __future__ import annotations

from dataclasses import dataclass

from ..algebra.bases import orthonormal
from ..arrays import Array, cast, library
from .control import Control
from .part import Part

APART = 0.1  # a cosine below which two spans hardly touch


@dataclass(frozen=True)
class Overlap:
    """Two parts, by their numbers (from 1), and the principal cosines of their spans, largest first: 0 apart, 1 shared."""

    first: int
    second: int
    cosines: tuple[float, ...]

    def __str__(self) -> str:
        told = ", ".join(f"{cosine:.2f}" for cosine in self.cosines)
        largest = self.cosines[0] if self.cosines else 0.0
        meaning = "they hardly touch" if largest < APART else "the later one acts on what the earlier one left, so their order matters"
        return f"parts {self.first} and {self.second}: principal cosines {told}; {meaning}"


def overlaps(control: Control) -> list[Overlap]:
    """Of every two parts of a control. For two controls, ask `first.then(second)`."""
    spans = [_span(part) for part in control.parts]
    return [
        Overlap(number + 1, later + 1, _cosines(spans[number], spans[later]))
        for number in range(len(spans))
        for later in range(number + 1, len(spans))
    ]


def _span(part: Part) -> Array:
    """Everything a part reads or writes, orthonormal."""
    return orthonormal(library(part.vectors).concat([part.vectors, part.read]) if part.read is not None else part.vectors)


def _cosines(one: Array, other: Array) -> tuple[float, ...]:
    of = library(one)
    return tuple(of.clip(of.linalg.svdvals(cast(one, "float64") @ cast(other, "float64").mT), None, 1.0).tolist())
