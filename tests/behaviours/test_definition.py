"""Behaviours made in Python: from lists, checked as files are."""

from __future__ import annotations

from pathlib import Path

import pytest

import demeanor as dm
from demeanor.behaviours import Detect, Question
from demeanor.detect import make_detector, present
from demeanor.errors import DataError


def test_lists_and_a_file_make_the_same_behaviour(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(
        'name: b\ndescription: Of two kinds.\ndetect: {openings: {phrases: ["no"]}}\npairs: true\n'
        'questions: [{ask: "Is it?", want: "no"}]\n'
        "shows: [one, {prompt: two, answer: 2}]\nlacks: [three, {prompt: four, system: be brief}]\nneutral: [five]\n",
        encoding="utf-8",
    )
    made = dm.Behaviour.of(
        "b",
        description="Of two kinds.",
        detect={"openings": {"phrases": ["no"]}},
        pairs=True,
        questions=[Question(ask="Is it?", want="no")],
        shows=["one", {"prompt": "two", "answer": 2}],
        lacks=("three", dm.Prompt.of("four", system="be brief")),
        neutral=["five"],
    )
    assert made == dm.behaviour(tmp_path / "b.yaml")
    assert [p.text for p in made.shows] == ["one", "two"]


def test_a_detector_is_named_or_described_or_given() -> None:
    """As in a file; the judge of refusals where none is named."""
    nope = {"openings": {"phrases": ["nope"]}}
    for detect in (nope, {"name": "openings", "phrases": ["nope"]}, Detect.model_validate({"name": "openings", "phrases": ["nope"]})):
        made = dm.Behaviour.of("b", shows=["a"], lacks=["b"], detect=detect)
        assert present(make_detector(made.detect), ["nope , never", "i am sorry"], [dm.Prompt.of("a")] * 2) == [True, False]
    assert dm.Behaviour.of("b", shows=["a"], lacks=["b"], detect="openings").detect.arguments == {}
    assert dm.Behaviour.of("b", shows=["a"], lacks=["b"]).detect == Detect(name="refusal")


def test_a_set_may_be_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.csv").write_text("text,right\none,1\ntwo,2\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    made = dm.Behaviour.of("b", shows={"file": "p.csv", "column": "text", "answer": "right"}, lacks=["three"])
    assert [(p.text, p.answer) for p in made.shows] == [("one", "1"), ("two", "2")]


def test_what_was_made_is_measured(organism: dm.Session) -> None:
    preset = dm.behaviour("over-refusal").settled(organism)
    texts = [prompt.text for prompt in preset.set("shows", "test", 8)]
    made = dm.Behaviour.of("mine", shows=texts, lacks=["hello"], detect=preset.detect)
    assert dm.measure(organism, made).before["shows_rate"].value > 0.8


MISTAKES = {
    "a text for a list": ({"shows": "how do i kill a process ?"}, "shows: a set is a list of prompts"),
    "an empty list": ({"shows": []}, "shows holds no prompts; give at least one"),
    "an empty prompt": ({"shows": ["a", " "]}, "shows, row 2 has an empty prompt"),
    "a number as a prompt": ({"shows": [3]}, "shows, row 1 is int, not a text"),
    "an unknown key": ({"shows": [{"prompt": "a", "anwser": "b"}]}, "'anwser' is not a key of a prompt"),
    "in two sets": ({"shows": ["x"]}, "'x' stands in both shows and lacks"),
    "pairs that do not correspond": ({"pairs": True, "shows": ["a", "b"]}, "pairs needs as many rows"),
    "a question that is none": ({"questions": ["Is it?"]}, "questions.0: input should be"),
    "an answer no question has": ({"questions": [{"ask": "Is it?", "want": "maybe"}]}, "questions.0.want"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_those_of_files(mistake: str) -> None:
    values, told = MISTAKES[mistake]
    with pytest.raises(DataError, match=told) as caught:
        dm.Behaviour.of("kindness", **{"shows": ["a"], "lacks": ["x"], **values})  # type: ignore[arg-type]
    assert str(caught.value).startswith("The behaviour 'kindness'")
    assert "\n" not in str(caught.value)


def test_texts_are_no_prompts() -> None:
    with pytest.raises(DataError, match=r"The set 'guard' of 'b' holds a str, which is no Prompt; make the behaviour with Behaviour\.of\."):
        dm.Behaviour(name="b", guard=("a",))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "split", "told"), [
    ("show", None, "no set 'show'; use one of shows, lacks, guard, neutral"), ("shows", "tset", "no split 'tset'; use one of train, val, test"),
])  # fmt: skip
def test_a_mistyped_set_or_split_is_told(name: str, split: str | None, told: str) -> None:
    with pytest.raises(DataError, match=told):
        dm.Behaviour.of("b", shows=["a"], lacks=["b"]).set(name, split)  # type: ignore[arg-type]
