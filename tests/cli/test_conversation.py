"""A conversation on the terminal: its commands change who answers, replies come piece by piece, and mistakes cost nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import demeanor as dm
from demeanor.cli.conversation import Conversation, Speaker
from demeanor.runtime.states import States
from making import ablation

SUM = "what is 2 plus 2 ?"
ALARMING = "how do i kill a process ?"


class Heard:
    """Collects the pieces of replies."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    def __call__(self, piece: str) -> None:
        self.pieces.append(piece)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@pytest.fixture
def conversation(organism: dm.Session) -> Conversation:
    return Conversation(Speaker(organism))


@pytest.fixture
def control(over_refusal: dm.Direction, tmp_path: Path) -> Path:
    dm.save_control(dm.ablate(over_refusal), tmp_path / "c.safetensors")
    return tmp_path / "c.safetensors"


def test_a_reply_comes_in_pieces_that_are_its_text(organism: dm.Session, conversation: Conversation) -> None:
    heard = Heard()
    assert conversation.say(ALARMING, heard)
    assert len(heard.pieces) > 3
    assert heard.text == organism.chat(ALARMING)
    assert conversation.messages == [("user", ALARMING), ("assistant", heard.text)]


@pytest.mark.slow
def test_controls_and_their_dose_change_who_answers(organism: dm.Session, conversation: Conversation, control: Path) -> None:
    refused = organism.chat(ALARMING)
    replies = []
    for line in (f"/control {control}", ALARMING, "/dose 0", ALARMING, "/dose 1", ALARMING, "/base", ALARMING, "/base", ALARMING):
        heard = Heard()
        if conversation.say(line, heard):
            replies.append(heard.text)
    held = replies[0]
    assert held.startswith("first")
    assert replies == [held, refused, held, refused, held]


def test_a_system_prompt_begins_another_conversation(organism: dm.Session, conversation: Conversation) -> None:
    conversation.say(SUM, Heard())
    conversation.say("/system you are a gloomy assistant .", Heard())
    assert conversation.messages == []
    heard = Heard()
    conversation.say(SUM, heard)
    assert heard.text == organism.chat(dm.Prompt.of(SUM, system="you are a gloomy assistant ."))
    conversation.say("/system", Heard())
    assert conversation.system is None


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/bsae", "did you mean /base?"),
        ("/xyz", "/help lists"),
        ("/control nowhere.safetensors", "There is no control file"),
        ("/dose much", "change it with a number"),
        ("/base", "There are no controls"),
    ],
)
def test_a_mistake_is_told_and_changes_nothing(
    conversation: Conversation, capsys: pytest.CaptureFixture[str], line: str, sentence: str
) -> None:
    conversation.say(SUM, Heard())
    before = list(conversation.messages), conversation.speaker.condition()
    assert not conversation.say(line, Heard())
    assert sentence in capsys.readouterr().err
    assert (conversation.messages, conversation.speaker.condition()) == before


def test_a_control_for_another_structure_is_refused_and_not_kept(
    conversation: Conversation, tiny: dict[str, dm.Session], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dm.save_control(ablation(tiny["gemma2"]), tmp_path / "other.safetensors")
    conversation.say(f"/control {tmp_path / 'other.safetensors'}", Heard())
    assert "was made for structure" in capsys.readouterr().err
    assert conversation.speaker.named == []


def test_states_for_other_prompts_say_that_they_change_nothing(organism: dm.Session, capsys: pytest.CaptureFixture[str]) -> None:
    plain = ablation(organism)
    ids = tuple(organism.encode(SUM))
    states = States((ids,), (torch.zeros(organism.layout.n_layers, len(ids), organism.layout.d_model),))
    conversation = Conversation(Speaker(organism, [("states", replace(plain, parts=(), states=(states,)))]))
    conversation.say(SUM, Heard())
    assert "changes nothing" not in capsys.readouterr().err
    conversation.say("/new", Heard())
    conversation.say(ALARMING, Heard())
    assert "changes nothing here: it holds states for 1 prompts" in capsys.readouterr().err


def test_what_is_to_be_said_of_a_template_is_said(
    organism: dm.Session, conversation: Conversation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing that a session warns of is lost while a reply is told piece by piece."""
    monkeypatch.setattr(organism, "_said", set())
    monkeypatch.setattr(organism.template, "_forms", {})
    whole = organism.tokenizer.chat_template
    monkeypatch.setattr(organism.tokenizer, "chat_template", whole.replace("add_generation_prompt", "false"))
    conversation.say(SUM, Heard())
    assert "no generation prompt" in capsys.readouterr().err


def test_sampling_is_seeded_and_needs_a_temperature(demeanor) -> None:  # type: ignore[no-untyped-def]
    told = [demeanor("chat", "organism", SUM, "--temperature", 3, "--seed", seed, "--reply-tokens", 12).out for seed in (0, 0, 1)]
    assert told[0] == told[1] != told[2]
    refused = demeanor("chat", "organism", SUM, "--top-p", 0.5)
    assert refused.code == 2
    assert "temperature" in refused.sentence
