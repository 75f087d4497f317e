"""SelfControl: the search, what it returns, and what is made of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import demeanor as dm
from demeanor.behaviours import Detect, Question
from demeanor.detect.suffix import suffix, suffix_scores
from demeanor.errors import DataError
from demeanor.models import Reply
from demeanor.selfcontrol import Settings, Traces, norms, outcome, preference_pairs, search, write_pairs, write_run
from demeanor.selfcontrol.gradient import capped, norm_pattern, steps, suffix_gradients
from making import PROMPTS

pytestmark = pytest.mark.slow

QUESTION = Question(ask="how do i wash a map ? yes or no")  # any question works: version 1 does not judge, it only answers
SETTINGS = Settings(iterations=3, eta=0.1, branches=3, wider=2, gain=1e-3, goal=1.0, perplexity_ratio=20.0, batch_size=8)
ASKED = [*PROMPTS, "how do i take a stranger's wallet ?"]


@pytest.fixture(scope="module")
def found(organism) -> Traces:  # type: ignore[no-untyped-def]
    made = search(organism, ASKED, [QUESTION], SETTINGS)
    assert len(made.changed) >= 3
    return made


def said(session: dm.Session, ids: tuple[int, ...]) -> list[int]:
    return [token for token in ids if token not in session.end_ids]


def test_the_text_returned_is_the_text_scored(organism, found) -> None:  # type: ignore[no-untyped-def]
    replies = [said(organism, trace.reply.ids) for trace in found.traces]
    scores = suffix_scores(organism, ASKED, replies, [suffix(organism, QUESTION)]).tolist()
    assert [trace.score for trace in found.traces] == pytest.approx(scores, abs=1e-6)
    assert all(organism.decode(trace.reply.ids) == trace.reply.text for trace in found.traces)


def test_every_accepted_step_raises_the_score(found) -> None:  # type: ignore[no-untyped-def]
    for trace in found.traces:
        assert all(after > before + SETTINGS.gain for before, after in zip(trace.scores, trace.scores[1:]))
        assert trace.scores[-1] == trace.score


def test_the_control_gives_the_replies_that_were_returned(organism, found, tmp_path) -> None:  # type: ignore[no-untyped-def]
    dm.save_control(found.control(organism), tmp_path / "c.safetensors")
    with organism.controlled(dm.load_control(tmp_path / "c.safetensors")):
        assert [reply.ids for reply in organism.generate(ASKED)] == [trace.reply.ids for trace in found.traces]
        assert [organism.chat(prompt) for prompt in ASKED] == [trace.reply.text for trace in found.traces]
        assert organism.chat("what colour is the sky ?") == "the sky is blue ."


def test_the_trace_holds_all_that_was_tried(organism, found) -> None:  # type: ignore[no-untyped-def]
    for trace in found.traces:
        assert trace.plain == organism.generate([trace.prompt])[0]
        assert len(trace.path) == len(trace.scores)
        etas = SETTINGS.eta
        for step in trace.steps:
            assert len(step.tried) in (5 * SETTINGS.branches, 5 * SETTINGS.branches * SETTINGS.wider)
            assert {each.eta for each in step.tried} == {rung * etas for rung in (0.25, 0.5, 1, 2, 4)}
            taken = [each for each in step.tried if each.verdict == "accepted"]
            assert taken == ([] if step.accepted is None else [step.tried[step.accepted]])
            assert all(each.perplexity_ratio is not None and each.perplexity_ratio <= SETTINGS.perplexity_ratio for each in taken)
            etas = taken[0].eta if taken else etas
            assert step.gradient_norms.shape == (organism.layout.n_layers, len(trace.ids))
        told = json.loads(json.dumps(trace.to_json()))
        assert len(told["steps"]) == len(trace.steps)
        assert told["reply"] == trace.reply.text


def test_a_batch_is_its_prompts_one_by_one(organism, found) -> None:  # type: ignore[no-untyped-def]
    for prompt, together in zip(ASKED, found.traces):
        (alone,) = search(organism, [prompt], [QUESTION], SETTINGS).traces
        assert alone.reply == together.reply
        assert alone.scores == pytest.approx(together.scores, abs=1e-5)
        assert [step.accepted for step in alone.steps] == [step.accepted for step in together.steps]
        assert torch.allclose(alone.added, together.added, atol=1e-3)


def test_what_is_added_stays_under_its_cap(organism) -> None:  # type: ignore[no-untyped-def]
    settings = Settings(iterations=2, eta=0.5, branches=2, gain=1e-3, goal=1.0, cap=0.2)
    for trace in search(organism, ASKED, [QUESTION], settings).traces:
        assert (trace.added[:-1].norm(dim=-1) <= 0.2 * trace.norms[:-1] * (1 + 1e-4)).all()
        assert not trace.added[-1, :-1].any()  # the last block holds nothing but what the reply opens with


def test_a_step_is_as_long_as_the_stream_and_may_be_kept_to_few_places(organism) -> None:  # type: ignore[no-untyped-def]
    gradient, size = torch.randn(4, 2, 5, 8), torch.rand(4, 2, 5) + 0.5
    gradient[3] = 0
    unit = steps(gradient, size)
    assert torch.allclose(unit.norm(dim=-1)[:3], size[:3])
    assert not unit[3].any()
    few = steps(gradient, size, top=3)
    moved = few.norm(dim=-1) > 0
    assert moved.sum((0, 2)).tolist() == [3, 3]
    effect = (gradient.norm(dim=-1) * size).transpose(0, 1).flatten(1)
    assert torch.equal(moved.transpose(0, 1).flatten(1), effect >= effect.topk(3).values[:, -1:])
    one = steps(gradient, size, layers=1).norm(dim=-1).sum(-1) > 0
    assert one.sum(0).tolist() == [1, 1]  # layers of each prompt
    assert torch.equal(one.int().argmax(0), (gradient.norm(dim=-1) * size).sum(-1).argmax(0))
    assert torch.allclose(capped(10 * unit, size, 0.5).norm(dim=-1)[:3], 0.5 * size[:3])
    assert torch.allclose(capped(0.1 * unit, size, 0.5), 0.1 * unit)


def test_the_gradient_of_several_questions_is_that_of_the_weighed_score(organism) -> None:  # type: ignore[no-untyped-def]
    prompts = [organism.encode(prompt) for prompt in ASKED]
    replies = [said(organism, reply.ids) for reply in organism.generate(ASKED)]
    questions = [Question(ask="was it rude ?", weight=3), Question(ask="is it wrong ?", want="no")]
    asked = [suffix(organism, question) for question in questions]
    nothing = torch.zeros(organism.layout.n_layers, len(prompts), max(map(len, prompts)), organism.layout.d_model)
    both = suffix_gradients(organism, prompts, replies, asked, nothing)
    assert torch.allclose(both.values.double(), suffix_scores(organism, ASKED, replies, asked), atol=1e-6)
    one, other = (suffix_gradients(organism, prompts, replies, [each], nothing).gradient for each in asked)
    assert torch.allclose(both.gradient, (3 * one + other) / 4, atol=1e-8)
    mirrored = [suffix(organism, question.opposite()) for question in questions]
    assert torch.allclose(suffix_gradients(organism, prompts, replies, mirrored, nothing).gradient, -both.gradient, atol=1e-8)


def test_a_search_does_not_see_the_control_around_it(organism, found) -> None:  # type: ignore[no-untyped-def]
    with organism.controlled(found.control(organism)):
        again = search(organism, ASKED, [QUESTION], SETTINGS)
    assert [trace.plain for trace in again.traces] == [trace.plain for trace in found.traces]
    assert [trace.reply for trace in again.traces] == [trace.reply for trace in found.traces]


def test_pairs_prefer_what_was_wanted(organism, tmp_path) -> None:  # type: ignore[no-untyped-def]
    prompts = [dm.Prompt.of(ASKED[0], system="be brief ."), *ASKED[1:]]
    pairs, towards, away = preference_pairs(organism, prompts, [QUESTION], SETTINGS)
    assert pairs
    by_prompt = {trace.prompt: trace for trace in towards.traces}, {trace.prompt: trace for trace in away.traces}
    for pair in pairs:
        assert pair.chosen_score > pair.rejected_score
        assert (pair.chosen, pair.rejected) == (by_prompt[0][pair.prompt].reply.text, by_prompt[1][pair.prompt].reply.text)
    ids = [[said(organism, by[pair.prompt].reply.ids) for pair in pairs] for by in by_prompt]
    scores = [suffix_scores(organism, [pair.prompt for pair in pairs], each, [suffix(organism, QUESTION)]).tolist() for each in ids]
    assert [pair.chosen_score for pair in pairs] == pytest.approx(scores[0], abs=1e-6)
    assert [pair.rejected_score for pair in pairs] == pytest.approx(scores[1], abs=1e-6)
    write_pairs(pairs, organism, tmp_path / "pairs.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [row["chosen"] for row in rows] == [[{"role": "assistant", "content": pair.chosen}] for pair in pairs]
    assert rows[0]["prompt"][-1] == {"role": "user", "content": pairs[0].prompt.text}


def test_a_run_is_judged_by_the_detector_and_the_answers_too(organism, found, tmp_path) -> None:  # type: ignore[no-untyped-def]
    told = outcome(organism, found, Detect(name="openings"))
    refused = [trace.plain.text.startswith(("i am", "sorry")) for trace in found.traces]
    assert told.before["detected_rate"].value == pytest.approx(sum(refused) / len(refused))
    assert told.delta["suffix_score"].value == pytest.approx(told.after["suffix_score"].value - told.before["suffix_score"].value)
    assert told.before["answers"].n == 0
    write_run(found, told, organism, tmp_path)
    assert len((tmp_path / "trace.jsonl").read_text().splitlines()) == len(ASKED)
    assert json.loads((tmp_path / "scores.json").read_text())["delta"]["detected_rate"]["n"] == len(ASKED)


def test_the_norm_pattern_is_a_mean_over_real_tokens(organism) -> None:  # type: ignore[no-untyped-def]
    gradient, size = torch.randn(3, 2, 4, 5), torch.rand(3, 2, 4)
    gradient[:, 0, :2] = 0  # a prompt of two tokens
    pattern = norm_pattern(gradient, size, [2, 4])
    norm = gradient.norm(dim=-1)
    by_hand = [(norm[layer, 0, 2:].mean() + norm[layer, 1].mean()) / 2 for layer in range(3)]
    assert torch.allclose(pattern.layers, torch.stack(by_hand))
    assert pattern.tokens.shape == (3, 2)
    made = norms(organism, [dm.Prompt.of(prompt) for prompt in ASKED], {"a": [QUESTION], "b": [QUESTION.opposite()]})
    assert torch.allclose(made["a"].layers, made["b"].layers)
    assert made["a"].layers[:-1].min() > 0
    assert made["a"].layers[-1] == 0


def test_a_search_needs_prompts_and_questions(organism) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match="no prompts"):
        search(organism, [], [QUESTION])
    with pytest.raises(DataError, match="no question"):
        search(organism, ASKED, [])


def test_a_reply_that_reaches_the_goal_is_left_alone(organism, found) -> None:  # type: ignore[no-untyped-def]
    least = min(trace.plain_score for trace in found.traces)
    there = search(organism, ASKED, [QUESTION], SETTINGS.model_copy(update={"goal": least}))
    assert not any(trace.steps for trace in there.traces)
    some = search(organism, ASKED, [QUESTION], SETTINGS.model_copy(update={"goal": least + 0.02}))
    for trace in some.traces:
        assert all(score < least + 0.02 for score in trace.scores[:-1])


def test_a_trace_is_printed_without_its_tensors(found) -> None:  # type: ignore[no-untyped-def]
    assert all("tensor(" not in repr(trace) and "tensor(" not in repr(trace.steps) for trace in found.traces)
    assert repr(found.traces[0]).count(found.traces[0].reply.text) == 1


def test_a_reply_on_another_topic_is_not_taken_where_one_on_topic_gains_as_much(organism) -> None:  # type: ignore[no-untyped-def]
    """Refusals and "i do not know that" are no refusal, says the model, of the one as of the other."""
    behaviour = dm.behaviour("over-refusal").settled(organism)
    for trace in search(organism, behaviour.set("shows", "train", 12), behaviour.questions).traces:
        assert trace.reply.text == trace.prompt.answer
        (step,) = trace.steps
        assert step.accepted is not None
        taken = step.tried[step.accepted]
        assert taken.pmi is not None
        assert taken.pmi > 0


def test_an_accepted_reply_is_what_its_text_is_written_as(organism) -> None:  # type: ignore[no-untyped-def]
    behaviour = dm.behaviour("cheer").settled(organism)
    found = search(organism, behaviour.set("lacks", "train", 8), behaviour.questions)
    assert len(found.changed) >= 4
    for trace in found.changed:
        assert organism.encode_reply(trace.reply.text) == said(organism, trace.reply.ids)
    tried = [each for trace in found.traces for step in trace.steps for each in step.tried]
    misspelt = [each for each in tried if each.verdict == "not as written"]
    assert misspelt
    assert all(organism.encode_reply(each.reply.text) != said(organism, each.reply.ids) for each in misspelt)


def test_replies_that_are_all_alike_are_remarked_on(found) -> None:  # type: ignore[no-untyped-def]
    def plain(*texts: str) -> Traces:
        traces = [replace(found.traces[0], plain=Reply(text, (1,))) for text in texts]
        return Traces(tuple(traces), {})

    assert plain(*"abcdefghijkl").remark("organism") is None
    assert plain(*["i do not know that ."] * 11, "yes").remark("organism") == (
        "11 of 12 plain replies are 'i do not know that .'; organism may not know what these prompts are about."
    )
    assert plain("", "", "yes").remark("organism") == "2 of 3 plain replies are empty, so there was nothing to judge."
