"""The prompts for a real model in `real/`: what the files hold. No model is asked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from demeanor.behaviours import SET_NAMES, Behaviour
from demeanor.behaviours.prompts import SPLITS
from demeanor.behaviours.reading import read_file
from demeanor.detect import make_detector

REAL = Path(__file__).resolve().parents[2] / "real"
FILES = sorted(REAL.glob("*.yaml"))
PROMPTS = sorted((REAL / "prompts").iterdir())
SIZE = 240


def behaviours() -> dict[str, Behaviour]:
    return {path.stem: read_file(path) for path in FILES}


def texts(path: Path) -> list[str]:
    rows = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(row)["prompt"] if path.suffix == ".jsonl" else row for row in rows]


def test_the_behaviours_are_there() -> None:
    assert {path.stem for path in FILES} == {"asks-private", "everyday", "joy", "joyful", "private-data"}
    assert [behaviour.name for behaviour in behaviours().values()] == [path.stem for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_set_holds_240_prompts_and_every_split_enough(path: Path) -> None:
    behaviour = read_file(path)
    for name in SET_NAMES:
        prompts = behaviour.set(name)
        if name == "guard" and not prompts:
            continue
        assert len(prompts) == (2 * SIZE if (path.stem, name) == ("asks-private", "shows") else SIZE), name
        counts = {split: len(behaviour.set(name, split)) for split in SPLITS}
        assert counts["train"] >= 90, (name, counts)
        assert min(counts["val"], counts["test"]) >= 40, (name, counts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_detectors_can_be_made(path: Path) -> None:
    make_detector(read_file(path).detect, None)


def test_only_over_refusal_has_a_guard_and_only_the_tone_has_pairs() -> None:
    read = behaviours()
    assert [name for name, behaviour in read.items() if behaviour.guard] == ["everyday"]
    assert [name for name, behaviour in read.items() if behaviour.pairs] == ["joy"]
    assert not any(behaviour.has_replies for behaviour in read.values())


def test_the_joyful_and_the_sorrowful_prompts_differ_in_the_system_prompt_alone() -> None:
    joy = behaviours()["joy"]
    assert [prompt.text for prompt in joy.shows] == [prompt.text for prompt in joy.lacks]
    assert len({prompt.system for prompt in joy.shows} | {prompt.system for prompt in joy.lacks}) == 2
    assert {prompt.system for prompt in joy.neutral} == {None}


def test_no_prompt_repeats_another_once_case_is_folded() -> None:
    folded = [text.casefold().strip() for path in PROMPTS for text in texts(path)]
    assert len(set(folded)) == len(folded) == SIZE * len(PROMPTS)


def test_no_prompt_is_one_of_another_file_but_for_a_word() -> None:
    seen: dict[tuple[str, ...], tuple[str, str]] = {}
    near = []
    for path in PROMPTS:
        for text in texts(path):
            words = re.findall(r"[\w']+", text.casefold())
            for key in {(*words[:place], "*", *words[place + 1 :]) for place in range(len(words)) if len(words) > 4}:
                name, other = seen.setdefault(key, (path.stem, text))
                if name != path.stem:
                    near.append((text, other))
    assert not near


def test_neutral_answers_are_known_where_there_is_one() -> None:
    neutral = behaviours()["everyday"].neutral
    known = [prompt.answer for prompt in neutral if prompt.answer is not None]
    assert len(known) >= 100
    assert all(answer.strip() for answer in known)


def test_the_lexicon_tells_joy_from_sorrow_and_from_plain_prose() -> None:
    joy = behaviours()["joy"]
    detector = make_detector(joy.detect, None)
    replies = ["What a wonderful, joyful morning!", "The morning was grey and heavy.", "The bridge is made of stone and has two arches."]
    assert detector.probabilities(replies, joy.neutral[:3]) == [1.0, 0.0, 0.0]
