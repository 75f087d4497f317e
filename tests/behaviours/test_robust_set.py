"""Robust sets: read as other sets are, whole, without the behaviour's own prompts; mistakes are told in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import demeanor as dm
from demeanor.errors import DataError
from demeanor.finding.examine import examine

PLAIN = 'name: b\nshows: ["one"]\nlacks: ["two"]\nguard: ["three", "four"]\n'


def read(folder: Path, robust: str) -> dm.Behaviour:
    (folder / "b.yaml").write_text(f"{PLAIN}robust: {robust}\n", encoding="utf-8")
    made = dm.behaviour(folder / "b.yaml")
    assert isinstance(made, dm.Behaviour)
    return made


def test_a_robust_set_is_read_as_other_sets_are(tmp_path: Path) -> None:
    (tmp_path / "drei.csv").write_text("text,right\ndrei,3\nvier,4\n", encoding="utf-8")
    made = read(tmp_path, '{german: {guard: {file: drei.csv, column: text, answer: right}, shows: ["eins"]}, by-hand: {guard: ["a third"]}}')
    german, by_hand = made.robust
    assert [(prompt.text, prompt.answer) for prompt in german.guard] == [("drei", "3"), ("vier", "4")]
    assert [prompt.text for prompt in german.shows] == ["eins"]
    assert (by_hand.name, by_hand.shows) == ("by-hand", ())
    assert [prompt.text for prompt in made.guard] == ["three", "four"]
    assert not {"drei", "vier", "eins", "a third"} & {prompt.text for prompt in made.all_prompts()}
    in_python = dm.Behaviour.of(
        "b", shows=["one"], lacks=["two"], guard=["three", "four"],
        robust={"german": {"guard": [{"prompt": "drei", "answer": 3}, {"prompt": "vier", "answer": 4}], "shows": ("eins",)}, "by-hand": {"guard": ["a third"]}},
    )  # fmt: skip
    assert in_python == made


def test_what_stands_in_the_behaviours_own_sets_is_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = read(tmp_path, '{other: {guard: ["three ", "fünf", "one", "fünf"]}}')
    err = capsys.readouterr().err
    assert [prompt.text for prompt in made.robust[0].guard] == ["fünf"]
    assert "robust.other.guard: 2 of 3 prompts stand in the behaviour's own sets too and are left out here." in err
    assert "robust.other.guard: 1 of 4 prompts repeat another" in err
    assert len(made.guard) == 2


MISTAKES = {
    "[one]": "robust: its sets have names, such as",
    "{german: [drei]}": "robust.german: a robust set is a mapping with guard, shows or both",
    "{german: {}}": "robust.german: a robust set is a mapping with guard, shows or both",
    "{german: {guard: }}": "robust.german: a robust set is a mapping",
    "{german: {gaurd: [drei]}}": "'robust.german.gaurd' is not a key; the keys are guard, shows",
    "{german: {guard: {file: x.csv, colum: text}}}": "'robust.german.guard.colum' is not a key; the keys are file",
    "{german: {guard: drei}}": "robust.german.guard: a set is a list of prompts",
    "{german: {guard: {file: none.csv}}}": "none.csv",
    "{'in german': {guard: [drei]}}": "'in german' is no name of a robust set",
    "{7: {guard: [drei]}}": "7 is no name of a robust set",
    "{rate: {guard: [drei]}}": "'rate' is taken by other scores",
    "{german: {guard: [three, four]}}": r"each of its prompts \(2\) stands in the behaviour's own sets",
    "{german: {guard: [drei]}, other: {shows: [drei]}}": "'drei' stands in both robust.german.guard and robust.other.shows",
}


@pytest.mark.parametrize("robust", MISTAKES)
def test_a_mistake_is_told_in_one_sentence(robust: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=MISTAKES[robust]) as told:
        read(tmp_path, robust)
    assert "\n" not in str(told.value)


def test_no_robust_sets_are_none(tmp_path: Path) -> None:
    assert read(tmp_path, "").robust == ()


def test_check_shows_them(demeanor: Any, tmp_path: Path) -> None:
    ended = demeanor("check", "over-refusal", "organism", "--per-set", 1)
    assert "(measure --robust): loose, guard 80; loose, shows 80; unheard, guard 80; unheard, shows 80." in " ".join(ended.out.split())
    read(tmp_path, "{story: {guard: [drei]}}")
    wrong = demeanor("check", tmp_path / "b.yaml")
    assert wrong.code == 2
    assert "'story'" in wrong.sentence


def test_examined_robust_sets_are_counted_and_make_no_problem() -> None:
    made = dm.Behaviour.of("b", shows=[f"a {n}" for n in range(90)], lacks=[f"b {n}" for n in range(90)], robust={"two": {"shows": ["c", "d"]}})
    examined = examine(made)
    assert examined.problems == ()
    assert [(one.name, one.prompts) for one in examined.robust] == [("two, shows", 2)]
    assert examined.to_json()["robust"][0]["prompts"] == 2
