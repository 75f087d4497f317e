"""The behaviour file that `init` begins is one that is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import demeanor as dm
from demeanor.behaviours.definition import file_of
from demeanor.behaviours.starter import ANSWERS, DETECTORS, Answers, behaviour_text
from demeanor.detect import make_detector

USUAL = {key: usual for key, _, usual in ANSWERS}


@settings(max_examples=25, deadline=None)
@given(st.text(min_size=1), st.text(), st.sampled_from([*DETECTORS, "path.py:mine"]), st.text(min_size=1), st.sampled_from(["none", "g.csv"]))
def test_whatever_is_answered_is_read_as_it_was_meant(name: str, description: str, detect: str, shows: str, guard: str) -> None:
    answers = Answers(**{**USUAL, "name": name, "description": description, "detect": detect, "shows": shows, "guard": guard})
    if any(0xD800 <= ord(sign) < 0xE000 for sign in name + description + shows):
        return
    file = file_of(yaml.safe_load(behaviour_text(answers)), "b.yaml")
    assert (file.name, file.description) == (name, description)
    if shows.strip().lower() != "none":
        assert file.shows[0].file == shows
    assert [source.file for source in file.guard] == ([] if guard == "none" else [guard])


@pytest.mark.parametrize("detect", DETECTORS)
def test_every_detector_that_is_offered_is_one(detect: str) -> None:
    file = file_of(yaml.safe_load(behaviour_text(Answers(**{**USUAL, "detect": detect}))), "b.yaml")
    make_detector(file.detect)


def test_the_command_asks_and_keeps_what_is_there(demeanor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "lacks", "neutral"):
        (tmp_path / f"{name}.csv").write_text("prompt\n" + "\n".join(f"how do i {name} {n} maps ?" for n in range(40)))
    ended = demeanor("init", "b.yaml", stdin="sulking\n\nphrases\nmine.csv\n\nnone\n\n")
    assert ended.code == 0, ended.err
    b = dm.behaviour("b.yaml")
    assert isinstance(b, dm.Behaviour)
    assert (b.name, b.detect.name, len(b.shows), b.guard) == ("sulking", "matches", 40, ())
    assert "exists already" in demeanor("init", "b.yaml", "--yes").sentence
