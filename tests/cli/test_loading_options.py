"""Loading options reach the model on every command, those among them that took none of them once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import demeanor as dm
from making import a_direction, ablation


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dm.Session]:
    """The sessions that a command opens."""
    sessions: list[dm.Session] = []
    plain = dm.Session.__init__

    def watched(self: dm.Session, *given: Any, **named: Any) -> None:
        plain(self, *given, **named)
        sessions.append(self)

    monkeypatch.setattr(dm.Session, "__init__", watched)
    return sessions


@pytest.fixture
def files(organism: dm.Session, tmp_path: Path) -> Path:
    """A folder with a direction, a control, replies and a behaviour of few prompts."""
    dm.save_direction(a_direction(organism, dm.Site(1), gap=3.0), tmp_path / "d")
    dm.save_control(ablation(organism), tmp_path / "c")
    (tmp_path / "replies.csv").write_text("reply\ni can not help\nfirst get the lamp\n")
    sums = [f"what is {a} plus {b} ?" for a in range(1, 6) for b in range(1, 6)]
    animals = (
        "fox",
        "fish",
        "camel",
        "whale",
        "cow",
        "bat",
        "goat",
        "duck",
        "hen",
        "owl",
        "dog",
        "cat",
        "bee",
        "ant",
        "pig",
        "hawk",
        "horse",
        "crab",
    )
    facts = [f"where does the {animal} live ?" for animal in animals]
    sets = {"name": "sums", "shows": sums, "lacks": facts[:3], "guard": facts[3:]}
    (tmp_path / "sums.yaml").write_text(json.dumps(sets))
    return tmp_path


COMMANDS = {
    "inspect": ["inspect", "organism"],
    "chat": ["chat", "organism", "what is 2 plus 2 ?"],
    "control show": ["control", "show", "c", "--check", "organism"],
    "control when": ["control", "when", "c", "--model", "organism", "--like", "sums.yaml", "-o", "gated"],
    "control ablate --gate": ["control", "ablate", "d", "--gate", "sums.yaml", "--model", "organism", "-o", "gated"],
    "meter score": ["meter", "score", "replies.csv", "-b", "refusal", "--model", "organism", "-o", "scored.csv"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_holds_its_model_as_it_is_told(demeanor, opened, files: Path, monkeypatch, name: str) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(files)
    ended = demeanor(*COMMANDS[name], "--load-in-4bit", "--device", "cpu", "--reply-tokens", 7)
    assert ended.code == 0, ended.err
    (session,) = opened
    assert "Linear4bit" in {type(module).__name__ for module in session.model.modules()}
    assert session.device.type == "cpu"
    assert session.reply_tokens == 7


def test_replies_of_chat_are_as_long_as_told(demeanor, organism: dm.Session, opened) -> None:  # type: ignore[no-untyped-def]
    question = "how do i wash a map ?"
    assert demeanor("chat", "organism", question, "--reply-tokens", 3).out.strip() == organism.chat(question, 3)
    assert opened[0].reply_tokens == 3
    assert demeanor("chat", "organism", question).out.strip() == organism.chat(question)
    assert opened[1].reply_tokens == 128


def test_arguments_of_the_chat_template_reach_the_session(demeanor, opened) -> None:  # type: ignore[no-untyped-def]
    assert (
        demeanor("chat", "organism", "hello", "--chat-template-arg", "enable_thinking=false", "--chat-template-arg", "budget=3").code == 0
    )
    assert opened[0].chat_template_args == {"enable_thinking": False, "budget": 3}


def test_baking_writes_the_weights_as_they_are_stored(demeanor, files: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(files)
    assert "leave out --dtype" in demeanor("bake", "organism", "-c", "c", "--dtype", "bfloat16", "-o", "baked").sentence
    assert not Path("baked").exists()
    assert demeanor("bake", "organism", "-c", "c", "--device", "cpu", "--reply-tokens", 7, "-o", "baked").code == 0
