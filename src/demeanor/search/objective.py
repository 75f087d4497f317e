"""What a trial is worth: quick values of several controls at once, behind every gate, on no more prompts than are needed.

A gate costs no pass: a row has the controlled values where it fires and the untouched ones elsewhere. All controls of a batch are read on
a few prompts first; one that some earlier trial beats there, as surely as so few prompts tell, is read no further.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..controls import Control
from ..finding.gauges import LEAST
from .front import surely_beats
from .surrogates import Read, ShortReplies

FIRST = 16  # prompts of each set that every trial is read on
WIDE = 1.96  # standard errors of a bound
SLACK = 0.01  # of a share, and of drift in nats per token: trials that differ by no more go on
DIGITS = 6
WORST = 100.0  # the cost of what is no number


@dataclass(frozen=True)
class Quick:
    """Quick values of a trial: what is left of the behaviour on `shows` (useless replies included), drift in nats per token, and what the guard
    keeps, None without such prompts. shown: the share of `shows` that exhibit it. seen: of how many prompts of a set; whole: whether of all of them.
    best: what each cost may be at the least, as surely as the prompts seen tell."""

    left: float
    drift: float
    guard: float | None
    shown: float
    seen: int
    whole: bool
    best: tuple[float, ...]

    @property
    def costs(self) -> tuple[float, ...]:
        """What is to be small: what is left, drift, and what the guard loses."""
        return (self.left, self.drift, *(() if self.guard is None else (1 - self.guard,)))

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "best": list(self.best)}


@dataclass(frozen=True)
class Asked:
    """A control to be read, and the names of the gates that it is read behind."""

    control: Control
    gates: Sequence[str]


class Objective:
    """Reads controls by a surrogate. `fires` says of every gate which of the surrogate's prompts it lets through, as ones and zeros."""

    def __init__(self, surrogate: ShortReplies, fires: Mapping[str, Read]) -> None:
        self.surrogate, self.fires = surrogate, fires
        self.count = len(surrogate.prompts)
        # In the same parts as trials: what is said to other prompts too is told among those that are read together.
        first = min(FIRST, self.count)
        self.untouched = self.surrogate.read([None], 0, first)[0].then(self.surrogate.read([None], first, self.count)[0])
        self.passes = 0  # of a control over one prompt of each set

    def quick(self, asked: Sequence[Asked], incumbents: Sequence[Quick]) -> list[dict[str, Quick]]:
        """The quick values of every control, by gate."""
        reads = self._reads([item.control for item in asked], 0, min(FIRST, self.count))
        left = [
            number for number, item in enumerate(asked)
            if any(not _hopeless(self._value(reads[number], gate), incumbents) for gate in item.gates)
        ]  # fmt: skip
        if left and self.count > FIRST:
            more = self._reads([asked[number].control for number in left], FIRST, self.count)
            for number, read in zip(left, more, strict=True):
                reads[number] = reads[number].then(read)
        return [{gate: self._value(read, gate) for gate in item.gates} for item, read in zip(asked, reads)]

    def _reads(self, controls: Sequence[Control], first: int, last: int) -> list[Read]:
        """Controls that act on rows together, and those with adapters one by one."""
        reads: dict[int, Read] = {}
        together = [number for number, control in enumerate(controls) if not control.adapters]
        groups = ([together] if together else []) + [[number] for number in range(len(controls)) if number not in together]
        for numbers in groups:
            reads |= dict(zip(numbers, self.surrogate.read([controls[number] for number in numbers], first, last), strict=True))
        self.passes += len(controls) * (last - first)
        return [reads[number] for number in range(len(controls))]

    def _value(self, read: Read, gate: str) -> Quick:
        seen = max(len(read.shows), len(read.guard), len(read.drift))
        whole = seen >= self.count
        if gate in self.fires:
            read = read.where(self.fires[gate].part(0, seen), self.untouched.part(0, seen))
        kept = (read.guard / self.untouched.guard[:seen].clamp_min(LEAST)).clamp(max=1)  # of what the untouched model does: it is not sure either
        lost = 1 - kept
        columns = [read.left, read.drift, *([lost] if len(lost) else [])]
        return Quick(
            left=_mean(read.left), drift=_mean(read.drift), guard=_mean(kept) if len(lost) else None, shown=_mean(read.shows), seen=seen, whole=whole,
            best=tuple(_least(column) for column in columns),
        )  # fmt: skip


def _hopeless(value: Quick, incumbents: Sequence[Quick]) -> bool:
    """Whether some trial that was read on all prompts is better than this one can be."""
    return any(surely_beats(other.costs, value.best, SLACK) for other in incumbents)


def _mean(values: Tensor) -> float:
    """Rounded, so that batches of other rows, which differ in the last digits, give the same trial."""
    value = float(values.mean()) if len(values) else 0.0
    return round(value, DIGITS) if math.isfinite(value) else WORST


def _least(values: Tensor) -> float:
    """A mean less what so few values may be off."""
    mean = _mean(values)
    if mean >= WORST:
        return WORST
    error = float(values.std(unbiased=True)) / math.sqrt(len(values)) if len(values) > 1 else 1.0
    return round(max(0.0, mean - WIDE * max(error, LEAST)), DIGITS)
