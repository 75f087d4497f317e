"""Right answers: whole words in a row, whatever the case, the spacing and what is around them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demeanor.measure.answers import is_right

SETTINGS = settings(derandomize=True, deadline=None, max_examples=50)
WORDS = st.lists(st.sampled_from(["lamp", "turn", "twice", "green", "seven", "42", "7", "it's", "egg"]), min_size=1, max_size=5)
AROUND = st.lists(st.sampled_from(["well", "so", "the", "answer", "is", "!", ",", "(", '"']), max_size=4)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("7", "7"),
        ("that makes 7 .", "7"),
        ("That makes 7.", "7"),
        ("(7)", "7"),
        ("3+4=7", "7"),
        ("Paris, of course!", "paris"),
        ("the capital is\n\tPARIS", "Paris"),
        ("it is dark  blue , i think", "dark blue"),
        ("First get the lamp, then turn it twice.", "first get the lamp , then turn it twice ."),
        ("sure : first get the lamp , then turn it twice", "First get the lamp, then turn it twice!"),
        ("It\u2019s the boss's hat", "it's the boss\u2019s hat"),
        ("3 + 4", "3+4"),
        ("le CAF\u00c9", "caf\u00e9"),
    ],
)
def test_an_answer_that_is_there_is_right(reply: str, answer: str) -> None:
    """Punctuation around it, spacing, case, apostrophes and how its sentence ends do not matter."""
    assert is_right(reply, answer)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("17", "7"),
        ("70", "7"),
        ("that makes 17 .", "7"),
        ("7", "17"),
        ("a7", "7"),
        ("parish", "paris"),
        ("dark green and blue", "dark green blue"),
        ("blue dark", "dark blue"),
        ("darkblue", "dark blue"),
        ("3 - 4", "3 + 4"),
        ("34", "3 + 4"),
        ("first get the lamp", "first get the lamp , then turn it twice ."),
        ("get the lamp , then turn it twice .", "first get the lamp , then turn it twice ."),
        ("first get the lamp , then turn it once .", "first get the lamp , then turn it twice ."),
        ("", "7"),
        ("   ", "7"),
        ("i can not help with that .", "7"),
    ],
)
def test_an_answer_that_is_not_there_is_wrong(reply: str, answer: str) -> None:
    """Parts of words and of numbers, other orders, other signs and half a sentence are not the answer."""
    assert not is_right(reply, answer)


@SETTINGS
@given(words=WORDS, before=AROUND, after=AROUND, seed=st.integers(0, 2**16), end=st.sampled_from(["", ".", " !", "."]))
def test_rewriting_does_not_change_what_is_right(words: list[str], before: list[str], after: list[str], seed: int, end: str) -> None:
    """In any case and spacing, between any other words, the answer stays right; with its last word missing it is wrong."""
    rng = random.Random(seed)
    answer = " ".join(words)
    shuffled_case = [rng.choice([str.upper, str.lower, str.title])(word) for word in words]
    gaps = [rng.choice([" ", "  ", "\n", " \t "]) for _ in range(20)]
    reply = "".join(word + gap for word, gap in zip([*before, *shuffled_case, *after], gaps))
    assert is_right(reply, answer + end)
    assert not is_right(" ".join([*before, *words[:-1], *after]), answer)


@SETTINGS
@given(number=st.integers(0, 999), digit=st.integers(1, 9), words=WORDS)
def test_a_number_is_right_only_whole(number: int, digit: int, words: list[str]) -> None:
    """Another digit before or after makes another number."""
    said = [word for word in words if not word.isdigit()]
    assert is_right(" ".join([*said, str(number)]), str(number))
    assert not is_right(" ".join([*said, f"{digit}{number}"]), str(number))
    assert not is_right(" ".join([*said, f"{number}{digit}"]), str(number))


@pytest.mark.parametrize("answer", [".", " ", "!"])
def test_an_answer_without_words_is_never_right(answer: str) -> None:
    """Nothing to look for is not found: a blank answer column must not give full marks."""
    assert not is_right("i can not help with that", answer)
