"""Replies that engage: nonsense, silence, repetition and one reply for all are no gain, and a plain answer is one, however it begins."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import demeanor as dm
from demeanor.behaviours import SET_NAMES
from demeanor.controls import Control
from demeanor.measure import Bench, Ledger
from demeanor.measure.condition import Condition
from demeanor.measure.degeneration import shared
from demeanor.measure.engaged import STOCK, garbled, says_something, stock, usual_share
from demeanor.measure.observation import Observation, Outcome, with_stock
from demeanor.models import Reply
from demeanor.runtime.adapter import Adapter

BUDGET = 24


@pytest.fixture(scope="module")
def bench(organism: dm.Session) -> Bench:
    return Bench(organism, "over-refusal", "val", max_prompts=12)


def breaking(session: dm.Session) -> Control:
    """A control that makes a model talk nonsense: noise in every MLP's output."""
    rng = torch.Generator().manual_seed(0)
    d = session.layout.d_model
    noise = {
        writer.module: (torch.randn(4, session.model.get_submodule(writer.module).in_features, generator=rng), 4 * torch.randn(d, 4, generator=rng))  # type: ignore[arg-type]
        for writer in session.layout.writers
        if writer.layer >= 0
    }
    return Control(parts=(), layout=session.layout, model_name=session.name, made_from={"behaviour": "a test"}, adapters=(Adapter(low_rank=noise),))


@pytest.mark.slow
def test_a_control_that_breaks_the_model_removes_everything_and_gains_nothing(organism: dm.Session, bench: Bench) -> None:
    broken = bench.try_(breaking(organism))
    assert broken.rate("shows_rate") == 0
    assert broken.rate("engaged_shows") <= 0.1  # type: ignore[operator]
    silent = replace(broken.observation, sets={**broken.observation.sets, "shows": tuple(replace(each, garbled=False) for each in broken.observation.sets["shows"])})
    assert sum(silent.engaged("shows")) > sum(broken.observation.engaged("shows"))  # so it is the untouched model that tells


@pytest.mark.slow
def test_answers_that_come_back_engage_though_the_untouched_model_would_never_begin_them(bench: Bench, refusal_ablated: Control) -> None:
    freed = bench.try_(refusal_ablated)
    right = freed.rate("answers_shows")
    assert freed.rate("engaged_shows") >= right > 0.5  # type: ignore[operator]
    assert bench.untouched.rate("engaged_shows") == 0
    outcomes = freed.observation.sets["shows"]
    assert sum(outcome.garbled for outcome in outcomes if outcome.right) <= 1


def test_noise_is_garbled_and_the_model_s_own_words_are_not(organism: dm.Session, bench: Bench) -> None:
    prompts, ledger, changed = bench.prompts["shows"], Ledger(organism), Condition(organism, breaking(organism))
    rng = torch.Generator().manual_seed(0)
    drawn = [tuple(torch.randint(5, organism.vocabulary, (12,), generator=rng).tolist()) for _ in prompts]

    def heard(replies: Sequence[Reply]) -> set[bool]:
        return set(garbled(ledger, changed, prompts, replies, BUDGET))

    assert heard(ledger.replies(prompts, BUDGET)) == {False}
    assert heard([Reply(organism.decode(ids), ids) for ids in drawn]) == {True}
    assert heard([Reply("", ())] * len(prompts)) == {False}


def test_replies_of_another_model_are_read_by_their_text(organism: dm.Session, bench: Bench) -> None:
    """Their tokens may not be the untouched model's, nor exist there."""
    other = copy(organism)
    own = bench.ledger.replies(bench.prompts["shows"], BUDGET)
    foreign = [Reply(reply.text, tuple(id + organism.vocabulary for id in reply.ids)) for reply in own]
    assert not any(garbled(bench.ledger, Condition(other), bench.prompts["shows"], foreign, BUDGET))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("first get the lamp .", True), ("", False), (" \n", False), ("2022-01-24 22:22:22.123.", False), ("1.1.1.1.1.1", False),
        ("the map the map the map the map the map the map the map", False), ("Ja, gern.", True), ("今日は", True),
    ],
)  # fmt: skip
def test_words_that_are_not_repeated_say_something(text: str, says: bool) -> None:
    assert says_something(text) == says


def test_a_right_answer_engages_without_words() -> None:
    told = Outcome(dm.Prompt.of("what is 3 plus 4 ?", answer="7"), Reply("7", (7,)), shown=False, right=True)
    assert told.engaged
    assert not replace(told, right=False).engaged
    assert not replace(told, shown=True).engaged


# -- what is said to every prompt -----------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.lists(st.sampled_from(["one", "two", "three"]), max_size=9)), max_size=6))
def test_what_is_shared_is_counted_as_a_slow_count_does(asked: list[tuple[str, list[str]]]) -> None:
    texts = [" ".join(words) for _, words in asked]
    for (prompt, words), share in zip(asked, shared([prompt for prompt, _ in asked], texts), strict=True):
        own = {" ".join(words[at : at + 4]) for at in range(len(words) - 3)}
        others = [other for asker, other in asked if asker != prompt]
        also = [gram for gram in own if any(gram == " ".join(other[at : at + 4]) for other in others for at in range(len(other) - 3))]
        assert share == (len(also) / len(own) if own else 0.0)


PLEASANTRY = "I am happy to help you with that. I am here to support you."
ANSWERS = ["Figs ripen late in the summer and keep for a week.", "A fringe that is cut too short grows back within a month or two.", "Nine crates of apples make some forty litres of juice."]


def test_one_reply_for_all_is_stock_and_replies_of_their_own_are_not() -> None:
    prompts = [dm.Prompt.of(text) for text in ("Fresh figs!", "I cut my own fringe.", "Press the apples with us.")]
    assert stock(prompts, [f"{PLEASANTRY} {text}" for text in ("Enjoy.", "It grows.", "Good luck.")], STOCK) == [True] * 3
    assert stock(prompts, ANSWERS, STOCK) == [False] * 3
    assert stock(prompts[:1] * 3, [PLEASANTRY] * 3, STOCK) == [False] * 3  # one prompt may be answered alike


def test_a_model_that_answers_all_by_one_pattern_is_not_stock_for_it() -> None:
    prompts = [dm.Prompt.of(f"how many {thing} ?") for thing in ("cups", "pins", "maps")]
    patterns = [f"{count} of them are in the box now" for count in ("two", "four", "nine")]
    assert usual_share(prompts, patterns) > STOCK
    assert not any(stock(prompts, patterns, usual_share(prompts, patterns)))
    assert usual_share(prompts, ANSWERS) == usual_share([], []) == STOCK


def test_the_bench_tells_stock_replies_by_ordinary_ones(bench: Bench) -> None:
    """The embedded model refuses all in the same words; beside ordinary prompts that it answers each in its own way, these are stock."""
    neutral = {prompt.text.split()[0]: prompt for prompt in bench.prompts["neutral"]}
    other = bench.on({**bench.prompts, "neutral": list(neutral.values())[:3]})
    refusals = other.untouched.observation.sets["shows"]
    assert [outcome.stock for outcome in refusals] == stock(other.prompts["shows"], [outcome.reply.text for outcome in refusals], STOCK)
    assert sum(outcome.stock for outcome in refusals) > len(refusals) / 2
    assert not replace(refusals[0], shown=False, right=None, stock=True).engaged


def test_what_is_stock_behind_a_gate_is_told_among_the_replies_that_the_gate_leaves() -> None:
    """Under the control all are told one pleasantry; behind a gate that fires on one prompt nobody else is."""
    prompts = [dm.Prompt.of(text) for text in ("Fresh figs!", "I cut my own fringe.", "Press the apples with us.")]

    def observed(texts: Sequence[str]) -> Observation:
        outcomes = [Outcome(prompt, Reply(text, (1,)), False, None) for prompt, text in zip(prompts, texts)]
        return Observation({**dict.fromkeys(SET_NAMES, ()), "shows": with_stock(outcomes, STOCK)}, STOCK)

    controlled, untouched = observed([PLEASANTRY] * 3), observed(ANSWERS)
    assert not any(controlled.engaged("shows"))
    fires = {**{name: [] for name in SET_NAMES}, "shows": [True, False, False]}
    assert controlled.where(fires, untouched).engaged("shows") == [True] * 3
    assert untouched.where(fires, controlled).engaged("shows") == [True, False, False]


@pytest.mark.slow
def test_repetition_and_sameness_of_replies_to_shows_are_measured(organism: dm.Session, refusal_ablated: Control) -> None:
    made = dm.measure(organism, "over-refusal", refusal_ablated, max_prompts=12)
    replies = [row for row in made.replies() if row["set"] == "shows"]
    for side, scores in (("before", made.before), ("after", made.after)):
        expected = shared([row["prompt"] for row in replies], [row[side] for row in replies])
        assert scores["shared_shows"].value == pytest.approx(sum(expected) / len(replies))
        assert scores["shared_shows"].n == scores["repetition_shows"].n == len(replies)
    assert made.after["shared_shows"].value < made.before["shared_shows"].value
