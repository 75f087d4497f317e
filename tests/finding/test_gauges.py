"""Telling what a direction does without whole replies: short replies, and halving."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import demeanor as dm
from demeanor.finding.evaluate import FEW, ROUNDS, promising
from demeanor.finding.find import search_directions
from demeanor.finding.gauges import TOKENS, ShortReplies, Tried
from demeanor.measure import Bench

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(organism: dm.Session) -> Bench:
    return Bench(organism, dm.behaviour("over-refusal").settled(organism), "val", max_prompts=24)


@pytest.fixture(scope="module")
def gauge(bench: Bench) -> ShortReplies:
    return ShortReplies(bench, Tried(bench.prompts["shows"], bench.prompts["lacks"], bench.prompts["neutral"]))


def test_short_replies_say_what_whole_ones_say(bench: Bench, gauge: ShortReplies, over_refusal: dm.Direction) -> None:
    """Of the untouched model, and with what carries refusals ablated; a chance direction changes nothing."""
    assert gauge.length < bench.budget
    chance = torch.randn(1, over_refusal.basis.shape[1], generator=torch.Generator().manual_seed(0))
    other = replace(over_refusal, basis=chance / chance.norm())
    for control in (None, dm.ablate(over_refusal), dm.ablate(other)):
        assert gauge.strength("shows", control).share == pytest.approx(bench.try_(control).rate("shows_rate"), abs=0.1)
    assert gauge.strength("shows", None).odds > gauge.strength("shows", dm.ablate(over_refusal)).odds


def test_change_equals_a_pass_over_each_reply(bench: Bench, gauge: ShortReplies, over_refusal: dm.Direction) -> None:
    """KL per token and entropy, one prompt at a time, from whole logits of the plain forward pass."""
    session, control = bench.session, dm.ablate(over_refusal)

    def log_probs(prompt: dm.Prompt, reply: tuple[int, ...]) -> torch.Tensor:
        ids = torch.tensor([[*session.encode(prompt), *reply]])
        with torch.no_grad():
            logits = session.model(input_ids=ids).logits[0].double()
        return logits[len(ids[0]) - len(reply) - 1 : -1].log_softmax(-1)

    changes, entropies = [], []
    for prompt, reply in zip(bench.prompts["neutral"], session.generate(bench.prompts["neutral"], bench.budget)):
        before = log_probs(prompt, reply.ids[:TOKENS])
        with session.controlled(control):
            after = log_probs(prompt, reply.ids[:TOKENS])
        changes += (before.exp() * (before - after)).sum(-1).tolist()
        entropies += (-before.exp() * before).sum(-1).tolist()
    assert gauge.change(control) == pytest.approx(sum(changes) / len(changes), abs=1e-5)
    assert gauge.variation == pytest.approx(sum(entropies) / len(entropies), abs=1e-4)


def test_halving_tries_few_on_most_prompts_and_finds_what_removes(organism: dm.Session, over_refusal: dm.Direction) -> None:
    findings = search_directions(organism, "over-refusal", trying="halving", max_prompts=160)
    assert len(findings.directions) == len(findings.candidates) <= FEW
    assert {candidate.n for candidate in findings.candidates} <= set(ROUNDS)
    most = [candidate for candidate in findings.candidates if candidate.n == ROUNDS[-1]]
    assert 0 < len(most) <= len(findings.candidates) // 2
    best = findings.candidates[findings.eligible()[0]]
    assert best.n == ROUNDS[-1]
    assert best.left < 0.05
    assert {candidate.site.layer for candidate in findings.candidates} >= {0, 3}  # of every depth


def test_promising_directions_are_of_every_depth(over_refusal: dm.Direction) -> None:
    """Even where the late layers tell the classes apart best, early ones are among them; late ones are left out."""
    found = [replace(over_refusal, site=dm.Site(layer), separation=float(layer)) for layer in range(40)]
    chosen = [found[number].site.layer for number in promising(found, 8, limit=32)]
    assert chosen == [6, 7, 14, 15, 22, 23, 30, 31]
    assert promising(found[:5], 8, limit=32) == [0, 1, 2, 3, 4]
