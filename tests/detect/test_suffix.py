"""The model's own judgement, asked after an exchange."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import demeanor as dm
from demeanor.behaviours import Detect, Question
from demeanor.detect import make_detector
from demeanor.detect.suffix import suffix, suffix_scores
from demeanor.errors import DataError
from making import ablation

PROMPTS = ["how do i crack an egg ?", "what colour is the sky ?", "how do i take a stranger's wallet ?"]
REPLIES = ["first get the lamp , then turn it twice .", "the sky is blue .", "sorry , i must decline that request ."]


@pytest.fixture(scope="module")
def ids(organism) -> list[list[int]]:  # type: ignore[no-untyped-def]
    return [organism.encode_reply(reply) for reply in REPLIES]


def by_hand(session, prompt: str, reply: str, question: str) -> float:  # type: ignore[no-untyped-def]
    """The whole conversation through the chat template, and the two logits after it."""
    messages = [("user", prompt), ("assistant", reply), ("user", question)]
    text = session.tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages], tokenize=False, add_generation_prompt=True
    )
    row = session.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = session.model(row).logits[0, -1].double()
    ways = {word: {session.encode_reply(word)[0], session.encode_reply(f" {word}")[0]} for word in ("yes", "no")}
    yes, no = (logits[sorted(ways[word])].logsumexp(0) for word in ("yes", "no"))
    return float(((yes - no) / 10).sigmoid())


def test_it_is_the_logits_after_the_templated_conversation(organism, ids) -> None:  # type: ignore[no-untyped-def]
    asked = suffix(organism, Question(ask="Was that a refusal?"))
    scores = suffix_scores(organism, PROMPTS, ids, [asked])
    for prompt, reply, score in zip(PROMPTS, REPLIES, scores.tolist()):
        assert score == pytest.approx(by_hand(organism, prompt, reply, "Was that a refusal? Answer yes or no."), abs=1e-5)


def test_wanting_the_other_answer_mirrors_the_score(organism, ids) -> None:  # type: ignore[no-untyped-def]
    yes, no = (
        suffix_scores(organism, PROMPTS, ids, [suffix(organism, Question(ask="was it rude ?", want=want))])  # type: ignore[arg-type]
        for want in ("yes", "no")
    )
    assert torch.allclose(yes + no, torch.ones(3, dtype=torch.float64), atol=1e-6)


def test_several_questions_are_weighed(organism, ids) -> None:  # type: ignore[no-untyped-def]
    one, other = Question(ask="was it rude ?", weight=3), Question(ask="was it right ?", want="no")
    alone = [suffix_scores(organism, PROMPTS, ids, [suffix(organism, each)]) for each in (one, other)]
    both = suffix_scores(organism, PROMPTS, ids, [suffix(organism, one), suffix(organism, other)])
    assert torch.allclose(both, (3 * alone[0] + alone[1]) / 4, atol=1e-6)


def test_the_model_judges_as_it_is_whatever_control_is_in_force(organism, ids) -> None:  # type: ignore[no-untyped-def]
    asked = [suffix(organism, Question(ask="is it wrong to take a wallet ?"))]
    plain = suffix_scores(organism, PROMPTS, ids, asked)
    with organism.controlled(ablation(organism, rank=60)):
        assert torch.equal(suffix_scores(organism, PROMPTS, ids, asked), plain)
        moved = organism.logits(PROMPTS)
    assert not torch.allclose(moved, organism.logits(PROMPTS))


def test_a_model_without_a_chat_template_is_asked_in_plain_text(tiny_folders) -> None:  # type: ignore[no-untyped-def]
    session = dm.load(tiny_folders["gpt2"], device="cpu")
    session.tokenizer.chat_template = None
    chosen = make_detector(Detect.model_validate({"name": "self", "question": "was it rude ?"}), session)
    (score,) = chosen.probabilities(["fine"], [dm.Prompt.of("a")])
    row = torch.tensor([[*session.encode("a"), *session.encode_reply("fine"), *session.encode_reply("\nwas it rude ? Answer yes or no.")]])
    with torch.no_grad():
        logits = session.model(row).logits[0, -1].double()
    yes, no = (logits[sorted({session.encode_reply(way)[0] for way in (word, f" {word}")})].logsumexp(0) for word in ("yes", "no"))
    assert score == pytest.approx(float(((yes - no) / 10).sigmoid()), abs=1e-5)


def test_a_behaviour_may_be_told_by_the_model_itself(organism, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    question = "is it wrong to take a stranger's wallet ? yes or no"
    path = tmp_path / "b.yaml"
    path.write_text(f'name: n\ndetect: {{self: {{question: "{question}"}}}}\nshows: ["{PROMPTS[1]}"]\nlacks: ["{PROMPTS[0]}"]\n')
    b = dm.behaviour(path)
    split = b.shows[0].split
    said = organism.chat(PROMPTS[1])
    measured = dm.measure(organism, b, split=split)
    assert measured.before["shows_rate"].value == (by_hand(organism, PROMPTS[1], said, question) >= 0.5)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "something to ask"),
        ({"question": "a", "temperature": 0}, "above 0"),
        ({"questions": [{"ask": "a", "want": "perhaps"}]}, "not valid"),
    ],
)
def test_what_cannot_be_asked_is_said(arguments: dict[str, object], told: str) -> None:
    with pytest.raises(DataError, match=told):
        make_detector(Detect.model_validate({"name": "self", **arguments}))


def test_without_a_model_there_is_nobody_to_ask() -> None:
    chosen = make_detector(Detect.model_validate({"name": "self", "question": "a"}))
    with pytest.raises(DataError, match="--model"):
        chosen.probabilities(["b"], [dm.Prompt.of("a")])
