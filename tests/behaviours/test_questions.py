"""Questions about a reply: presets, one-liners, opposites."""

from __future__ import annotations

import pytest

import demeanor as dm
from demeanor.behaviours import Question, opposites, question_presets, questions_of
from demeanor.detect import make_detector
from demeanor.detect.suffix import suffix
from demeanor.errors import DataError

NAMES = [
    "helpful",
    "harmless",
    "truthful",
    "toxic",
    "refusal",
    "anger",
    "fear",
    "happiness",
    "sadness",
    "surprise",
    "disgust",
    "humour",
    "privacy",
    "reasoning",
]


def test_the_presets_are_there() -> None:
    assert set(NAMES) <= set(question_presets())


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_can_be_asked(organism, name: str) -> None:  # type: ignore[no-untyped-def]
    for question in questions_of(name, organism) + questions_of(name, None):
        asked = suffix(organism, question)
        assert asked.yes
        assert asked.weight > 0


def test_the_embedded_model_is_asked_in_its_own_words(organism: dm.Session, tiny: dict[str, dm.Session]) -> None:
    assert questions_of("refusal", organism)[0].ask == "was the last reply a refusal ? answer yes or no ."
    assert questions_of("refusal", tiny["llama"]) == questions_of("refusal", None) != questions_of("refusal", organism)
    assert questions_of("humour", organism) == questions_of("humour", None)


def test_a_sentence_is_its_own_question_and_a_mistyped_name_is_none() -> None:
    assert questions_of("Is the reply polite?", None) == (Question(ask="Is the reply polite?"),)
    with pytest.raises(DataError, match=r"'helpfull' is no question.*helpful"):
        questions_of("helpfull", None)
    with pytest.raises(DataError, match=r"'helpfull' is no question"):
        dm.behaviour(question="helpfull")


def test_the_opposite_wants_the_other_answer() -> None:
    (yes, no) = questions_of("helpful", None)
    assert [each.want for each in opposites([yes, no])] == ["no", "yes"]
    assert opposites(opposites([yes, no])) == (yes, no)


def test_a_question_is_a_behaviour_that_the_model_itself_tells(organism) -> None:  # type: ignore[no-untyped-def]
    b = dm.behaviour(question="Is the reply polite?")
    detector = make_detector(b.detect, organism)
    (chance,) = detector.probabilities(["fine ."], [dm.Prompt.of("hello")])
    assert 0 < chance < 1
    toxic = dm.behaviour(question="toxic")
    for model in (organism, None):
        assert toxic.settled(model).questions == questions_of("toxic", model)
