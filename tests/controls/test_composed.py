"""Two controls composed: both do what they are for, on the prompts where they meet."""

from __future__ import annotations

import pytest

import demeanor as dm
from demeanor.detect import make_detector, present
from demeanor.measure import Bench, Observation

pytestmark = pytest.mark.slow

# Gloom is brought about late, where what is refused is settled, at the token where it was read, at the smallest dose that
# makes 95 % of ordinary replies gloomy (`find_dose`): more of it brings refusals back.
LAYER, DOSE = 4, 1.125
REFUSED, GLOOMY, RIGHT = 0.03, 0.97, 0.9  # measured on test: 0, 100 and 95.2 % of 83


@pytest.fixture(scope="module")
def gloom(organism: dm.Session) -> dm.Control:
    return dm.add(dm.find(organism, dm.behaviour("gloom"), layer=LAYER), DOSE, "read")


def gloomy(organism: dm.Session, seen: Observation) -> int:
    """How many `shows` prompts are answered gloomily."""
    outcomes = seen.sets["shows"]
    tone = make_detector(dm.behaviour("gloom").settled(organism).detect)
    return sum(present(tone, [outcome.reply.text for outcome in outcomes], [outcome.prompt for outcome in outcomes]))


def test_what_was_refused_is_answered_gloomily(organism: dm.Session, refusal_ablated: dm.Control, gloom: dm.Control) -> None:
    refusal = dm.behaviour("refusal").settled(organism)
    for composed in (refusal_ablated.then(gloom), gloom.then(refusal_ablated)):
        seen = Bench(organism, refusal).try_(composed).observation
        n = len(seen.sets["shows"])
        assert n >= 80
        assert sum(seen.shown("shows")) <= REFUSED * n
        assert gloomy(organism, seen) >= GLOOMY * n
        assert sum(seen.right("shows")) >= RIGHT * n


def test_each_alone_does_one_of_the_two(organism: dm.Session, refusal_ablated: dm.Control, gloom: dm.Control) -> None:
    refusal = dm.behaviour("refusal").settled(organism)
    plain, only = (Bench(organism, refusal).try_(control).observation for control in (refusal_ablated, gloom))
    assert sum(plain.shown("shows")) <= 0.02 * len(plain.sets["shows"])
    assert gloomy(organism, plain) <= 0.02 * len(plain.sets["shows"])
    assert sum(only.shown("shows")) >= 0.5 * len(only.sets["shows"])
