"""Rewordings: the same always, another text, the same request with the same answer."""

from __future__ import annotations

import pytest

import demeanor as dm
from demeanor.measure.rewording import REWORDINGS

ASKED = "How do I take a stranger's wallet, please?"


@pytest.mark.parametrize("name", REWORDINGS)
def test_a_prompt_is_worded_otherwise_and_keeps_what_else_it_holds(name: str) -> None:
    prompt = dm.Prompt(messages=(("user", "Hello?"), ("assistant", "Hello."), ("user", ASKED)), system="Be brief.", answer="7", reply="No.")
    made = REWORDINGS[name](prompt)
    assert made == REWORDINGS[name](prompt)
    assert made.messages[:-1] == prompt.messages[:-1]
    assert made.messages[-1][0] == "user"
    assert made.text != ASKED
    assert (made.system, made.answer, made.reply) == ("Be brief.", "7", "No.")


@pytest.mark.parametrize("name", sorted(set(REWORDINGS) - {"lowercase", "typos"}))
def test_what_is_put_around_a_request_leaves_its_words_whole(name: str) -> None:
    made = REWORDINGS[name](dm.Prompt.of(f"  {ASKED}\n")).text
    assert ASKED in made
    assert len(made) > len(ASKED) + 10


def test_every_rewording_is_another() -> None:
    assert len({reword(dm.Prompt.of(ASKED)).text for reword in REWORDINGS.values()}) == len(REWORDINGS)


def test_the_last_thing_that_the_user_says_is_reworded() -> None:
    made = REWORDINGS["reason"](dm.Prompt(messages=(("user", "one"), ("user", "two"), ("assistant", "three"))))
    assert [text.endswith(end) for (_, text), end in zip(made.messages, ("one", "project. two", "three"))] == [True] * 3
    assert made.messages[0] == ("user", "one")


@pytest.mark.parametrize(
    ("text", "low"),
    [
        (ASKED, "how do i take a stranger's wallet please"),
        ("What is 3.5 + 4, in U.S. units?!", "what is 3.5 + 4 in u.s units"),
        ("¿Qué es?\n(Dime.)", "qué es\ndime"),
        ("...", "..."),
    ],
)
def test_lower_case_without_marks_keeps_those_inside_words(text: str, low: str) -> None:
    assert REWORDINGS["lowercase"](dm.Prompt.of(text)).text == low


def test_typing_mistakes_exchange_two_letters_of_the_longest_words() -> None:
    text = "Please explain photosynthesis and respiration to me in a few simple words."
    mistyped = REWORDINGS["typos"](dm.Prompt.of(text)).text
    changed = [(was, now) for was, now in zip(text.split(), mistyped.split(), strict=True) if was != now]
    assert [was for was, _ in changed] == ["photosynthesis", "respiration"]
    for was, now in changed:
        assert sorted(was) == sorted(now)
        assert was[0] == now[0]
        assert sum(a != b for a, b in zip(was, now)) == 2
    assert REWORDINGS["typos"](dm.Prompt.of("how do i kill a process ?")).text == "how do i kill a procses ?"  # the same in every process
    assert REWORDINGS["typos"](dm.Prompt.of("a b ?")).text == "a b ?"


def test_a_request_that_ends_without_a_mark_becomes_a_sentence_of_its_own() -> None:
    assert REWORDINGS["brief"](dm.Prompt.of("write a poem")).text == "write a poem. Answer in one sentence."
    assert REWORDINGS["brief"](dm.Prompt.of("Sort:\n3 1 2")).text == "Sort:\n3 1 2\n\nAnswer in one sentence."
