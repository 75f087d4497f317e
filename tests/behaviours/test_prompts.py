"""Splits of prompts: by the prompt alone, in the shares that are promised."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demeanor.behaviours.prompts import Columns, Prompt, prompts_from_rows

SETTINGS = settings(derandomize=True, deadline=None, max_examples=50)
TEXTS = st.text('ab ?\n"\\\u00e9\u4e2d\U0001f600', min_size=1, max_size=30)


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_splits_are_half_a_quarter_and_a_quarter(system: str | None) -> None:
    """Over 4,000 prompts that differ in a number only, each share is within three standard errors."""
    counts = Counter(Prompt.of(f"how do i kill process {number} ?", system=system).split for number in range(4000))
    assert set(counts) == {"train", "val", "test"}
    assert counts["train"] == pytest.approx(2000, abs=95)
    assert counts["val"] == pytest.approx(1000, abs=82)
    assert counts["test"] == pytest.approx(1000, abs=82)


@SETTINGS
@given(text=TEXTS, system=st.none() | TEXTS, reply=TEXTS, answer=TEXTS, prefill=TEXTS)
def test_split_does_not_depend_on_what_is_known_of_the_reply(text: str, system: str | None, reply: str, answer: str, prefill: str) -> None:
    """A prompt never moves from test to train because a reply, an answer or a prefill came with it."""
    plain = Prompt.of(text, system=system)
    assert replace(plain, reply=reply, answer=answer, prefill=prefill).split == plain.split


def test_split_does_not_depend_on_the_file() -> None:
    """Other rows, another order and other columns leave every prompt where it was."""
    texts = [f"crack an egg number {number}" for number in range(200)]
    alone = {text: Prompt.of(text).split for text in texts}
    rows = [{"prompt": text, "a": str(number)} for number, text in enumerate(texts[50:])] + [
        {"prompt": f"more {n}", "a": "x"} for n in range(90)
    ]
    random.Random(0).shuffle(rows)
    for prompt in prompts_from_rows(rows, Columns(answer="a"), "rows"):
        assert prompt.text not in alone or prompt.split == alone[prompt.text]


def test_split_depends_on_the_whole_of_what_is_said() -> None:
    """An earlier turn or a role makes it another prompt: about five in eight change places. A system prompt does not: sets
    that differ in it alone ask the same questions, which must not be in train on one side and in test on the other."""
    texts = [f"shoot a photo of {number}" for number in range(400)]
    plain = [Prompt.of(text).split for text in texts]
    others = {
        "turns": [Prompt(messages=(("user", "hi"), ("assistant", "hello"), ("user", text))).split for text in texts],
        "role": [Prompt(messages=(("system", text),)).split for text in texts],
    }
    assert [Prompt.of(text, system="You are kind.").split for text in texts] == plain
    for name, splits in others.items():
        moved = sum(a != b for a, b in zip(plain, splits, strict=True)) / len(texts)
        assert moved == pytest.approx(0.625, abs=0.1), name


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("a", "train"),
        ("c", "test"),
        ("i", "val"),
        ("k", "val"),
        ("caf\u00e9", "test"),
        ("how do i kill a process ?", "train"),
        ("what is 3 + 4 ?", "test"),
    ],
)
def test_split_is_the_same_in_every_release(text: str, split: str) -> None:
    """Runs made earlier keep their test set: these places were fixed when the hash was chosen."""
    assert Prompt.of(text).split == split
