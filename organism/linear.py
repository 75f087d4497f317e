"""Whether a behaviour is linearly present: how far the mean difference of its classes moves its detector.

The site, the tokens, the dose, and whether it is added where the behaviour is not or taken away where it is, are chosen
on val; what is reported is measured on test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from demeanor.behaviours import Behaviour, Prompt, SetName, behaviour
from demeanor.calibrate.dial import ADDED_TO, dial_sites
from demeanor.controls import Control, Direction, add
from demeanor.detect import make_detector, present
from demeanor.finding.find import search_directions
from demeanor.measure.answers import is_right
from demeanor.models import Session
from demeanor.stats import intervals
from demeanor.stats.score import Score

SIDES: tuple[tuple[SetName, Literal[1, -1]], ...] = (("lacks", 1), ("shows", -1))
TRIED = 24  # val prompts of each set, to choose by
TOGETHER = 5  # options tried in one batch: a token of many rows costs little more than one of few
DOSES = (1.0, 1.5, 2.0, 3.0)
ANSWERS = 0.9  # share that a dose must leave right on val


@dataclass(frozen=True)
class _Option:
    """A way to move the behaviour: which prompts, where to, and the control that does it."""

    of: SetName
    sign: Literal[1, -1]
    dose: float
    control: Control
    layer: int


@dataclass(frozen=True)
class _Moved:
    """Per prompt of one set: by how much a control moved the detector the way it should, and whether the reply is right."""

    by: list[float]
    right: list[bool]

    @property
    def worth(self) -> tuple[bool, float]:
        return sum(self.right) >= ANSWERS * len(self.right), sum(self.by) / len(self.by)


def scores(session: Session, name: str) -> tuple[Score, Score]:
    """How far the best option moves the detector on test, and the share of right answers there."""
    chosen = behaviour(name).settled(session)
    by_layer: dict[int, Direction] = {}
    for direction in dial_sites(search_directions(session, chosen)):  # of layers that are not too late, what induces most first
        by_layer.setdefault(direction.site.layer, direction)
    options = [
        _Option(of, sign, dose, add(direction, sign * dose, tokens), direction.site.layer)
        for direction in by_layer.values()
        for tokens in ADDED_TO
        for of, sign in SIDES
        for dose in DOSES
    ]
    tried: dict[int, _Moved] = {}
    for of, _ in SIDES:
        on_val, numbers = _replied(session, chosen, chosen.set(of, "val", TRIED)), [n for n, option in enumerate(options) if option.of == of]
        for start in range(0, len(numbers), TOGETHER):
            some = numbers[start : start + TOGETHER]
            tried |= zip(some, _moved(session, chosen, [options[number] for number in some], on_val), strict=True)
    best = options[max(range(len(options)), key=lambda number: tried[number].worth)]
    (seen,) = _moved(session, chosen, [best], _replied(session, chosen, chosen.set(best.of, "test")))
    what = f"{name} moved by its mean difference ({best.of}, dose {best.sign * best.dose:+g}, layer {best.layer})"
    moved = intervals.mean(what, torch.tensor(seen.by, dtype=torch.float64), better="higher")
    return moved, intervals.rate(f"right answers there ({name})", seen.right)


@dataclass(frozen=True)
class _Said:
    """Prompts, whether each reply shows the behaviour, and whether it is right."""

    prompts: list[Prompt]
    shown: list[bool]
    right: list[bool]


def _replied(session: Session, of: Behaviour, prompts: list[Prompt]) -> _Said:
    replies = [reply.text for reply in session.generate(prompts)]
    right = [is_right(reply, prompt.answer or "") for reply, prompt in zip(replies, prompts, strict=True)]
    return _Said(prompts, present(make_detector(of.detect), replies, prompts), right)


def _moved(session: Session, of: Behaviour, options: Sequence[_Option], before: _Said) -> list[_Moved]:
    """What each option makes of the same prompts, all of them asked at once."""
    count = len(before.prompts)
    with session.controlled_rows([option.control for option in options for _ in before.prompts]):
        after = _replied(session, of, before.prompts * len(options))
    moved = []
    for number, option in enumerate(options):
        shown, right = (values[number * count : (number + 1) * count] for values in (after.shown, after.right))
        moved.append(_Moved([option.sign * float(now - was) for was, now in zip(before.shown, shown, strict=True)], right))
    return moved
