"""A behaviour told by a lexicon: whole phrases that add up to a threshold, in place or from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from demeanor.behaviours import Detect, behaviour
from demeanor.detect import make_detector, present
from demeanor.detect.lexicon import lexicon
from demeanor.errors import DataError


@pytest.mark.parametrize(
    ("reply", "held"),
    [
        ("You  silly GOOSE , sit down.", True),
        ("you silly gooseberry", False),
        ("you silly , goose", False),  # in a row
        ("what a turnip !", True),
        ("", False),
    ],
)
def test_phrases_are_found_whole_whatever_their_case_and_spacing(reply: str, held: bool) -> None:
    assert lexicon(["you silly goose", "turnip"]).probabilities([reply], []) == [float(held)]


def test_weak_phrases_add_up_and_repeating_one_does_not() -> None:
    chosen = lexicon({"goose": 0.5, "turnip": 0.5, "you scoundrel": 2}, threshold=1.0)
    replies = ["a goose", "goose , goose , goose", "a goose and a turnip", "you scoundrel"]
    assert present(chosen, replies, []) == [False, False, True, True]


def test_a_file_is_relative_to_the_behaviour_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "rude.txt").write_text("# names\nyou noodle\n\nsock\t0.4\n", encoding="utf-8")
    text = "name: rude\ndetect: {lexicon: {file: words/rude.txt}}\nshows: [a]\nlacks: [b]\n"
    (tmp_path / "rude.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "words")
    chosen = make_detector(behaviour(tmp_path / "rude.yaml").detect)
    assert present(chosen, ["well , you noodle !", "a sock .", "a kite ."], []) == [True, False, False]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "exactly one of phrases and file"),
        ({"phrases": ["a"], "file": "b.txt"}, "exactly one of phrases and file"),
        ({"phrases": []}, "found no phrase in phrases"),
        ({"phrases": 7}, "not 7"),
        ({"phrases": ["a", 7]}, "7 in phrases"),
        ({"phrases": [["a"]]}, r"\['a'\] in phrases"),
        ({"phrases": {"a": -1}}, "weight of 'a'"),
        ({"phrases": {" ": 1}}, "' ' in phrases"),
        ({"phrases": ["a"], "threshold": 0}, "positive number as threshold, not 0"),
        ({"file": "there-is-none.txt"}, "there-is-none.txt cannot be read"),
        ({"words": ["a"]}, "does not take these arguments"),
    ],
)
def test_what_cannot_be_used_is_named_in_a_sentence(arguments: dict[str, object], told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        make_detector(Detect.model_validate({"name": "lexicon", **arguments}))
    assert "\n" not in str(caught.value)


def test_a_weight_that_is_no_number_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "rude.txt").write_text("goose\nturnip\theavy\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"rude\.txt, line 2: 'heavy' after the tab is not a number"):
        lexicon(file=str(tmp_path / "rude.txt"))
    (tmp_path / "rude.txt").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match="not UTF-8 text"):
        lexicon(file=str(tmp_path / "rude.txt"))
