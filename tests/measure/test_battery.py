"""The built-in battery: the same questions always, graded by answers that are known."""

from __future__ import annotations

from collections import Counter

import pytest

import demeanor as dm
from demeanor.measure.battery import ITEMS, SKILLS, Item, battery, graded, items, paired
from demeanor.measure.measurement import measure


def test_two_dozen_questions_a_skill_and_none_twice() -> None:
    assert Counter(item.skill for item in items()) == dict.fromkeys(SKILLS, ITEMS)
    assert len({item.ask for item in items()}) == len(items())
    assert items() == items.__wrapped__()


def test_no_question_but_those_of_copying_holds_its_answer() -> None:
    assert [item.ask for item in items() if item.skill != "copying" and item.right(item.ask)] == []


def test_the_known_answers_are_right_and_empty_replies_are_not() -> None:
    best = graded([item.answers[-1] for item in items()])
    assert all(all(right) for right in best.values())
    assert not any(any(right) for right in graded([""] * len(items())).values())


@pytest.mark.parametrize(
    ("answers", "reply", "right"),
    [
        (("3 4 5",), "Sure: 3, 4, and 5.", True),
        (("3 4 5",), "1\n2\n3\n4\n5", True),
        (("3 4 5",), "3, 5, 4", False),
        (("l a m p",), "L-A-M-P", True),
        (("l a m p",), "lamp", False),
        (("4", "four"), "There are four words.", True),
        (("4", "four"), "There are 14 words.", False),
        (("12",), "3 plus 9 is 12.", True),
    ],
)
def test_how_parts_are_separated_does_not_matter(answers: tuple[str, ...], reply: str, right: bool) -> None:
    assert Item("counting", "?", answers).right(reply) is right


def test_a_change_is_told_for_all_questions_and_by_skill() -> None:
    was = {skill: [True] * ITEMS for skill in SKILLS}
    now = was | {"order": [False] * ITEMS}
    pairs = paired(was, now)
    assert sum(pairs["battery"][1]) == ITEMS * (len(SKILLS) - 1)
    assert pairs["battery_order"] == (was["order"], now["order"])
    assert len(pairs) == len(SKILLS) + 1


@pytest.mark.slow
def test_a_measurement_holds_it_where_it_was_asked_for(organism: dm.Session, refusal_ablated: dm.Control) -> None:
    measured = measure(organism, "over-refusal", refusal_ablated, max_prompts=8, battery=True)
    right = battery(organism)
    for name in ("battery", *(f"battery_{skill}" for skill in SKILLS)):
        assert measured.after[name].n == measured.before[name].n == measured.delta[name].n
        assert 0 < measured.p_holm[name] <= 1
    assert measured.before["battery_counting"].value == sum(right["counting"]) / ITEMS
    assert "battery" not in measure(organism, "over-refusal", refusal_ablated, max_prompts=8).after
