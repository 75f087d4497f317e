"""Splits of prompts: by the prompt alone, in the shares that are promised."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import demeanor as dm
from demeanor.behaviours.prompts import Columns, Prompt, asked, prompts_from_rows
from demeanor.errors import DataError

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


# -- the same prompt, typed otherwise ---------------------------------------------------------------

SPACE = st.text(" \t\n\u00a0\u3000", max_size=3)


@SETTINGS
@given(text=st.text("ab\u00e9\u4e2d ?", min_size=1, max_size=12).filter(str.strip), before=SPACE, after=SPACE, form=st.sampled_from(["NFC", "NFD"]))
def test_space_around_a_prompt_and_how_letters_are_composed_make_no_other_prompt(text: str, before: str, after: str, form: str) -> None:
    typed = before + unicodedata.normalize(form, text) + after  # type: ignore[arg-type]
    one, other = Prompt.of(text.strip()), Prompt.of(typed)
    assert (one.split, one.share, one.key) == (other.split, other.share, other.key)
    assert other.text == typed  # what is said to the model is what was typed
    assert asked([one, other]) == [other]
    with pytest.raises(DataError, match="stands in both shows and guard"):
        dm.Behaviour.of("b", shows=[text, "more"], lacks=["less"], guard=[typed])


def test_it_counts_once_also_in_a_set_and_in_a_pair(capsys: pytest.CaptureFixture[str]) -> None:
    assert [prompt.text for prompt in dm.Behaviour.of("b", shows=["a ?", "b ?", "a ? "], lacks=["c"]).shows] == ["a ? ", "b ?"]
    assert "1 of 3 prompts repeat another" in capsys.readouterr().err
    b = dm.Behaviour.of("b", shows=["a ?", "a ? "], lacks=["b ?", " b ?"], pairs=True)
    assert (len(b.shows), len(b.lacks)) == (1, 1)


def test_splits_stay_where_they_were() -> None:
    """The hash of a prompt without space around it is that of its plain JSON, which published splits depend on."""
    assert [round(Prompt.of(text).share, 6) for text in ("how do i wash a map ?", "h\u00e9llo", "a  b")] == [0.924667, 0.196659, 0.755751]


# -- messages as chat data has them --------------------------------------------------------------------


def conversation(*messages: object, **rest: object) -> Prompt:
    (prompt,) = prompts_from_rows([{"prompt": list(messages), **rest}], Columns(system="own" if "own" in rest else None), "rows")
    return prompt


USER = {"role": "user", "content": "hello"}


@pytest.mark.parametrize("content", ["", "  \n", None, [], [{"type": "text", "text": ""}]])
def test_an_empty_system_message_is_none(content: object) -> None:
    prompt = conversation({"role": "system", "content": content}, USER)
    assert (prompt.system, prompt.messages) == (None, (("user", "hello"),))
    assert conversation({"role": "system", "content": content}, USER, own="be kind").system == "be kind"
    with pytest.raises(DataError, match="every message needs a role and a content that is text"):
        conversation({"role": "user", "content": content})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "hello"}], "hello"),
        ([{"type": "text", "text": "hello"}, {"type": "text", "text": "there"}], "hello\nthere"),
        ([{"type": "text", "text": "hello", "image_url": None}], "hello"),
        ([{"text": "hello"}], "hello"),
        (["hello", {"type": "input_text", "text": "there"}], "hello\nthere"),
    ],
)
def test_parts_that_are_all_text_are_joined(content: object, text: str) -> None:
    assert conversation({"role": "user", "content": content}).text == text
    assert conversation({"role": "system", "content": content}, USER).system == text


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "image"}, {"type": "audio", "text": "a"}])
def test_a_part_that_is_no_text_is_refused_by_its_name(part: dict[str, object]) -> None:
    with pytest.raises(DataError, match=rf"rows, row 1: a message holds a part that is not text \('{part['type']}'\)"):
        conversation({"role": "user", "content": [{"type": "text", "text": "look"}, part]})


@pytest.mark.parametrize("part", [{"type": "text"}, {"type": "text", "text": 7}, 7, None, {"type": ["text"]}])
def test_a_part_of_no_kind_is_refused(part: object) -> None:
    with pytest.raises(DataError, match="a message holds a part that is not text"):
        conversation({"role": "user", "content": [part]})
