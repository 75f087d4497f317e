"""What changed inside a model: each figure against a slow reference, and in the commands that print it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import demeanor as dm
from demeanor.errors import DataError
from demeanor.measure import Bench
from demeanor.measure.changed import changed
from demeanor.measure.condition import Condition
from demeanor.measure.on_topic import on_topic
from demeanor.models.attribution import input_x_gradient, mean_states
from making import PROMPTS, ablation

pytestmark = pytest.mark.slow


def _leaf(seen: list[torch.Tensor], module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
    seen.append(output.detach().requires_grad_())
    return seen[-1]


def test_input_x_gradient_is_the_gradient_of_the_whole_reply(session: dm.Session) -> None:
    replies = [session.encode_reply(text) for text in ("3 plus 4 is 7 .", "no .", "first get the lamp", "hello")]
    found = input_x_gradient(session, PROMPTS, replies)
    for prompt, reply, shares in zip(PROMPTS, replies, found, strict=True):
        ids = torch.tensor([[*session.encode(prompt), *reply]])
        seen: list[torch.Tensor] = []
        hook = session.model.get_input_embeddings().register_forward_hook(partial(_leaf, seen))
        with torch.enable_grad():
            log_probs = session.model(ids, use_cache=False).logits[0].log_softmax(-1)
            start = ids.shape[1] - len(reply)
            total = sum(log_probs[place - 1, ids[0, place]] for place in range(start, ids.shape[1]))
            (gradient,) = torch.autograd.grad(total, seen[0])
        hook.remove()
        torch.testing.assert_close(shares, (seen[0].detach() * gradient)[0].sum(-1).abs(), rtol=2e-3, atol=1e-4)
        assert not any(parameter.requires_grad for parameter in session.model.parameters())


def test_states_are_means_over_tokens(organism: dm.Session) -> None:
    found = mean_states(organism, PROMPTS)
    for text, row in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            states = organism.decoder(torch.tensor([organism.encode_reply(text)])).last_hidden_state[0]
        torch.testing.assert_close(row, states.mean(0), rtol=1e-4, atol=1e-4)


def test_a_reply_is_on_the_topic_of_its_own_prompt(organism: dm.Session) -> None:
    prompts = dm.behaviour("refusal").settled(organism).set("neutral", "test", 20)
    replies = [[token for token in reply.ids if token not in organism.end_ids] for reply in organism.generate(prompts)]
    assert on_topic(organism, prompts, replies) == [True] * 20
    astray = on_topic(organism, prompts, replies[1:] + replies[:1])
    assert astray is not None
    assert sum(astray) <= 10  # some are facts of a kind
    assert on_topic(organism, prompts[:1] * 3, replies[:3]) is None
    assert on_topic(organism, prompts, [[], *replies[1:]]) == [False] + [True] * 19


def test_nothing_changed_in_the_same_model_and_much_in_another(organism: dm.Session) -> None:
    wanted = dm.behaviour("refusal").settled(organism)
    was = Condition(organism)
    bench = Bench(organism, wanted, max_prompts=6)
    said = bench.untouched.observation
    same = changed(was, Condition(organism), (said, said))
    assert same.before == same.after
    own = [
        organism.reply_log_likelihoods([outcome.prompt], [outcome.reply.ids])[0] for outcomes in said.sets.values() for outcome in outcomes
    ]
    assert same.before["log_likelihood"].value == pytest.approx(float(torch.cat(own).mean()), rel=1e-3)
    assert 0 < same.before["prompt_share"].value < 1
    assert 0 < same.before["prompt_entropy"].value <= 1
    assert same.before["similarity"].value > same.before["shuffled_similarity"].value
    now = Condition(organism, ablation(organism, rank=4, strength=3.0))
    other = changed(was, now, (said, bench.try_(now).observation))
    assert other.after["log_likelihood"].value < other.before["log_likelihood"].value
    assert other.after["prompt_share"] != other.before["prompt_share"]


def test_measure_tells_what_changed_between_models(demeanor: Any, tmp_path: Path, organism: dm.Session) -> None:
    dm.bake("organism", ablation(organism, strength=2.0), tmp_path / "other")
    command = ("measure", tmp_path / "other", "-b", "refusal", "--max-prompts", "4", "--device", "cpu")
    ended = demeanor(*command, "--base", "organism", "--json")
    assert ended.code == 0
    told = json.loads(ended.out)[str(tmp_path / "other")]["changed"]
    assert told["after"]["log_likelihood"]["value"] < told["before"]["log_likelihood"]["value"]
    assert "organism" in told["similarity_by"]
    assert "Inside" in demeanor(*command, "--base", "organism").out
    assert demeanor(*command, "--embedder", "some/model").code == 2


def test_an_embedder_that_is_not_there(organism: dm.Session) -> None:
    said = Bench(organism, dm.behaviour("refusal").settled(organism), max_prompts=2).untouched.observation
    with pytest.raises(DataError, match=r"sentence-transformers|could not be loaded"):
        changed(Condition(organism), Condition(organism), (said, said), embedder="some/model")
