"""Arguments of the wrong kind are told at once and in one sentence, as on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import demeanor as dm
from demeanor import selfcontrol
from demeanor.behaviours import Question
from demeanor.calibrate.dose import find_dose
from demeanor.controls import check, save_control
from demeanor.errors import ControlError, DataError
from demeanor.finding.update import update
from making import a_direction, ablation

A_TEXT = "how do i kill a process ?"
QUESTIONS = (Question(ask="Is it?"),)
Call = Callable[[dm.Session, dm.Direction, dm.Control], Any]

OF_PROMPTS: dict[str, Call] = {
    "generate": lambda s, d, c: s.generate(A_TEXT),
    "logits": lambda s, d, c: s.logits(A_TEXT),
    "reply_log_probs": lambda s, d, c: s.reply_log_probs(A_TEXT, [[1]]),
    "reply_log_likelihoods": lambda s, d, c: s.reply_log_likelihoods(A_TEXT, [[1]]),
    "capture": lambda s, d, c: s.capture(A_TEXT, [dm.Site(0)]),
    "capture of one prompt": lambda s, d, c: s.capture(dm.Prompt.of(A_TEXT), [dm.Site(0)]),  # type: ignore[arg-type]
    "check": lambda s, d, c: check(s, c, A_TEXT),
    "search": lambda s, d, c: selfcontrol.search(s, A_TEXT, QUESTIONS),
    "scores": lambda s, d, c: selfcontrol.scores(s, A_TEXT, ["a"], QUESTIONS),
    "norms": lambda s, d, c: selfcontrol.norms(s, A_TEXT, {"": QUESTIONS}),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("call", OF_PROMPTS)
def test_one_prompt_is_no_list_of_prompts(organism: dm.Session, call: str) -> None:
    """A text read as a list would be one prompt for each of its letters."""
    with pytest.raises(DataError, match=r"^A list of prompts is meant here, but (str|Prompt) was given; put a single prompt in a list"):
        OF_PROMPTS[call](organism, a_direction(organism, dm.Site(2)), ablation(organism))


OF_CONTROLS: dict[str, Call] = {
    "controlled, a path": lambda s, d, c: s.controlled("c.safetensors").__enter__(),  # type: ignore[arg-type]
    "controlled, a Path": lambda s, d, c: s.controlled(Path("c.safetensors")).__enter__(),  # type: ignore[arg-type]
    "controlled, a direction": lambda s, d, c: s.controlled(d).__enter__(),  # type: ignore[arg-type]
    "controlled_rows, a direction": lambda s, d, c: s.controlled_rows([c, d]).__enter__(),  # type: ignore[list-item]
    "measure, a direction": lambda s, d, c: dm.measure(s, "gloom", control=d),  # type: ignore[arg-type]
    "measure, a path": lambda s, d, c: dm.measure(s, "gloom", "c.safetensors"),  # type: ignore[arg-type]
    "find_dose": lambda s, d, c: find_dose(s, "gloom", d),  # type: ignore[arg-type]
    "bake": lambda s, d, c: dm.bake("organism", "c.safetensors", "out"),  # type: ignore[arg-type]
    "then": lambda s, d, c: c.then(d),
    "save_control": lambda s, d, c: save_control(d, "c.safetensors"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("call", OF_CONTROLS)
def test_a_path_or_a_direction_is_no_control(organism: dm.Session, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ControlError, match=r"^A control is meant here, but (str|PosixPath|Direction) was given; .* load_control"):
        OF_CONTROLS[call](organism, a_direction(organism, dm.Site(2)), ablation(organism))
    assert not list(tmp_path.iterdir())


OTHERS: dict[str, tuple[Call, str]] = {
    "find, swapped": (lambda s, d, c: dm.find(dm.behaviour("gloom"), s), "A behaviour is meant here, but Session was given"),
    "measure, swapped": (lambda s, d, c: dm.measure(dm.behaviour("gloom"), s), "A behaviour is meant here, but Session was given"),
    "measure, no session": (lambda s, d, c: dm.measure("organism", "gloom"), "A session is meant here, but str was given; load a model"),
    "update, swapped": (lambda s, d, c: update(s, dm.behaviour("gloom"), d), "A behaviour is meant here, but Direction was given"),
    "update, a path": (lambda s, d, c: update(s, "d.safetensors", "gloom"), "A direction is meant here, but str was given"),
    "find, another ranking": (lambda s, d, c: dm.find(s, "gloom", rank_by="bypas"), "rank_by should be 'trade_off', 'bypass', 'induce' or 'gap', not 'bypas'"),
    "find_dose, another goal": (lambda s, d, c: find_dose(s, "gloom", c, "increase"), "find_dose takes a DosePlan or keywords"),
    "gate, one set": (lambda s, d, c: dm.gate(s, "over-refusal", against="guard"), "against should be a valid tuple, not 'guard'"),
    "gate, another kind": (lambda s, d, c: dm.gate(s, "over-refusal", kind="prob"), "kind should be 'probe' or 'cosine', not 'prob'"),
    "measure, another split": (lambda s, d, c: dm.measure(s, "gloom", split="tset"), "no split 'tset'"),
    "ablate, a word as scope": (lambda s, d, c: dm.ablate(d, scope="all"), "A scope is meant here, but str was given"),
    "ablate, a site as scope": (lambda s, d, c: dm.ablate(d, scope=dm.Site(2)), "A scope is meant here, but Site was given"),
    "ablate, a scope as strength": (lambda s, d, c: dm.ablate(d, dm.Scope()), r"A number \(dose\) is meant here, but Scope was given"),
    "ablate, a path": (lambda s, d, c: dm.ablate("d.safetensors"), "A direction is meant here, but str was given; .* load_direction"),
    "ablate, a control": (lambda s, d, c: dm.ablate(c), "A direction is meant here, but Control was given"),
    "scale, a control": (lambda s, d, c: dm.scale(c, 0.5), "A direction is meant here, but Control was given"),
    "scale, a word as factor": (lambda s, d, c: dm.scale(d, "2"), r"A number \(factor\) is meant here, but str was given"),
    "rotate, a number": (lambda s, d, c: dm.rotate(d, 90, 1), "A direction is meant here, but int was given"),
    "add, a path": (lambda s, d, c: dm.add("d.safetensors", 1), "A direction is meant here, but str was given"),
    "add, other tokens": (lambda s, d, c: dm.add(d, 1, "rply"), "'rply' names no tokens; use one of "),
    "add, one position": (lambda s, d, c: dm.add(d, 1, "positions", -1), r"A list of positions is meant here, but int was given; .* \[-1\]"),
    "add, a word as position": (lambda s, d, c: dm.add(d, 1, "positions", ["last"]), "Positions are whole numbers"),
    "add, a position from the start": (lambda s, d, c: dm.add(d, 1, "positions", [3]), "count from the end of the prompt"),
    "clamp, another class": (lambda s, d, c: dm.clamp(d, "lack"), "not at 'lack'"),
    "Scope, tokens first": (lambda s, d, c: dm.Scope(site="reply"), "A site is meant here, but str was given; tokens are named"),
    "Scope, another role": (lambda s, d, c: dm.Scope(role="attention"), "'attention' is no role of a writer; use embed, attn or mlp"),
    "when, a behaviour's name": (lambda s, d, c: c.when("over-refusal"), "A gate is meant here, but str was given; make one with gate"),
    "when, a control": (lambda s, d, c: c.when(c), "A gate is meant here, but Control was given"),
    "controlled_rows, one control": (lambda s, d, c: s.controlled_rows(c).__enter__(), "A list of controls is meant here, but Control"),
    "capture, one site": (lambda s, d, c: s.capture(["a"], dm.Site(2)), r"A list of sites is meant here, but Site was given; .* \[Site"),
    "capture, a layer's number": (lambda s, d, c: s.capture(["a"], [2]), "A site is meant here, but int was given"),
    "chat, a list": (lambda s, d, c: s.chat(["a"]), "A prompt is meant here, but list was given"),
    "Prompt, a text": (lambda s, d, c: dm.Prompt(messages="hello"), r"a tuple of \(role, text\), not 'hello'; .* Prompt\.of\(text\)"),
    "Prompt, dictionaries": (lambda s, d, c: dm.Prompt(messages=({"role": "user", "content": "a"},)), r"a tuple of \(role, text\), not \("),
    "Prompt.of, a number": (lambda s, d, c: dm.Prompt.of(3), r"a tuple of \(role, text\), not \(\('user', 3\),\)"),
    "generate, token ids": (lambda s, d, c: s.generate([[1, 2]]), "A prompt is meant here, but list was given"),
    "save_direction, a control": (lambda s, d, c: dm.save_direction(c, "d.safetensors"), "A direction is meant here, but Control was given"),
    "search, a text as questions": (lambda s, d, c: selfcontrol.search(s, ["a"], "Is it?"), "A list of questions is meant here, but str"),
    "search, texts as questions": (lambda s, d, c: selfcontrol.search(s, ["a"], ["Is it?"]), "A question is meant here, but str was given"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_another_kind_of_argument_is_told(organism: dm.Session, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call, told = OTHERS[case]
    with pytest.raises(dm.DemeanorError, match=told) as caught:
        call(organism, a_direction(organism, dm.Site(2)), ablation(organism))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    assert not list(tmp_path.iterdir())


def test_what_is_meant_is_taken(organism: dm.Session) -> None:
    """Tuples and generators are lists, and whole numbers are numbers."""
    direction = a_direction(organism, dm.Site(2))
    prompts = [A_TEXT, dm.Prompt.of("hello")]
    expected = organism.logits(prompts)
    assert torch.equal(organism.logits(tuple(prompts)), expected)
    assert torch.equal(organism.logits(prompt for prompt in prompts), expected)  # type: ignore[arg-type]
    assert dm.ablate(direction, 1).parts[0].dose == 1
    assert len(organism.capture(prompts, (dm.Site(0), dm.Site(1))).sites) == 2
