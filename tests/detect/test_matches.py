"""A behaviour told by words: whole phrases and a pattern, anywhere or at the opening."""

from __future__ import annotations

from pathlib import Path

import pytest

from demeanor.behaviours import Detect, behaviour
from demeanor.detect import make_detector, present
from demeanor.detect.matches import matches
from demeanor.errors import DataError


def fits(reply: str, **arguments: object) -> bool:
    (probability,) = matches(**arguments).probabilities([reply], [])  # type: ignore[arg-type]
    assert probability in (0.0, 1.0)
    return probability == 1.0


@pytest.mark.parametrize(
    ("phrase", "reply", "held"),
    [
        ("as an AI", "Well, as an ai I will.", True),
        ("as an ai", "as  an\nAI", True),
        ("as an ai", "as an aide", False),
        ("as an ai", "as , an ai", False),  # in a row
        ("an ai", "as sane aim", False),
        ("i can", "i can ' t", False),  # "can't" is one word
        ("i can't", "I can\u2019t .", True),
        ("7", "that makes 7.", True),
        ("7", "that makes 17.", False),
        ("7", "that makes 7.5", False),
        ("nope ,", "I said nope, not that", True),
        ("2 + 2", "2+2 is 4", True),
        ("c'est \u00e7a", "C'EST \u00c7A!", True),
        ("\U0001f600", "hi\U0001f600!", True),
    ],
)
def test_phrases_are_found_whole_whatever_their_case_and_spacing(phrase: str, reply: str, held: bool) -> None:
    assert fits(reply, any=[phrase]) is held
    assert fits(reply, all=[phrase]) is held
    assert fits(reply, none=[phrase]) is not held


def test_every_condition_that_was_given_must_hold() -> None:
    chosen = matches(any=["sure", "of course"], all=["step"], none=["sorry"], pattern=r"\d+")
    replies = [
        "Of course: step 1.", "sure, step 2",
        "step 3", "sure 4", "sure, step 5, sorry", "sure, step",
        "",
    ]  # fmt: skip
    assert chosen.probabilities(replies, []) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert fits("one and two", all=["one", "two"])
    assert not fits("one", all=["one", "two"])
    assert not fits("two", none=["one", "two"])
    assert fits("", none="sorry")


def test_a_single_phrase_needs_no_list() -> None:
    assert fits("so sorry", any="sorry")
    assert not fits("so s o", any="sorry")


def test_the_opening_is_where_the_reply_begins() -> None:
    assert fits(" Sure , here", any=["sure"], where="opening")
    assert fits('**Sure**, "here"', any=["sure"], where="opening")
    assert fits('"Sure"', any=['"sure'], where="opening")
    assert not fits("I am sure", any=["sure"], where="opening")
    assert not fits("surely", any=["sure"], where="opening")
    assert not fits("no problem", any=["no"], none=["no problem"], where="opening")
    assert fits("no, that is no problem", any=["no"], none=["no problem"], where="opening")
    assert fits("\n 7 plus", pattern=r"\d", where="opening")
    assert not fits("so 7 plus", pattern=r"\d", where="opening")


def test_a_pattern_sees_the_reply_as_written_and_ignores_case() -> None:
    assert fits("the sum: 7 PLUS 5 is 12.", pattern=r"\d+ plus \d+ is \d+")
    assert not fits("7 plus five is 12.", pattern=r"\d+ plus \d+ is \d+")
    assert fits("a\n- b", pattern="(?m)^- ")
    assert not fits("a - b", pattern="(?m)^- ")


def test_a_behaviour_file_needs_no_code(tmp_path: Path) -> None:
    (tmp_path / "sums.yaml").write_text(
        'name: sums\ndetect: {matches: {pattern: "\\\\d+ plus \\\\d+ is \\\\d+"}}\nshows: ["what is 7 plus 5 ?"]\nlacks: ["who are you ?"]\n'
    )
    chosen = make_detector(behaviour(tmp_path / "sums.yaml").detect)
    assert present(chosen, ["7 plus 5 is 12", "twelve"], []) == [True, False]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "at least one of any, all, none and pattern"),
        ({"any": []}, "'any' as a list of at least one phrase"),
        ({"none": [], "pattern": "a"}, "'none' as a list of at least one phrase"),
        ({"all": None}, "'all' as a list"),
        ({"any": {"a": 1}}, "'any' as a list"),
        ({"any": "  "}, "'  ' in 'any'"),
        ({"any": ["a", ""]}, "'' in 'any'"),
        ({"all": [7]}, "7 in 'all'"),
        ({"pattern": "(a"}, "not a valid regular expression"),
        ({"pattern": "a{99999999999999}"}, "not a valid regular expression"),
        ({"pattern": ""}, "regular expression in quotes"),
        ({"pattern": 7}, "regular expression in quotes"),
        ({"any": "a", "where": "end"}, "use anywhere or opening"),
        ({"some": ["a"]}, "does not take these arguments"),
    ],
)
def test_arguments_that_do_not_fit_are_told_in_a_sentence(arguments: dict[str, object], told: str) -> None:
    with pytest.raises(DataError, match="'matches'") as caught:
        make_detector(Detect.model_validate({"name": "matches", **arguments}))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
