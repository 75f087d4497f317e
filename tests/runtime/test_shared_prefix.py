"""What prompts begin with is run once, and every value is what whole prompts give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import demeanor as dm
from demeanor.controls import Control, Part, Scope
from demeanor.runtime import runner
from demeanor.runtime.adapter import Adapter
from demeanor.runtime.shared_prefix import Tail, packed, shared_length, window
from making import ablation, basis_of, gate_on_length

OPENING = "please tell me how to wash a friend's bike , and what is 3 plus 4 , and how do i"
ENDS = ["crack an egg ?", "fold a map", "wash it ? it is urgent , is it not ?", "get the lamp", "find an owl or a bee ?", "sing", "wash a map ?", "be an owl"]
PROMPTS = [f"{OPENING} {end}" for end in ENDS]
SITES = [dm.Site(layer, point, position) for layer in (0, 2) for point in ("resid_pre", "resid_post") for position in (-1, -2, -4)]  # type: ignore[arg-type]


@contextmanager
def whole(session: dm.Session) -> Iterator[None]:
    """Prompts are run whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "is_worth_it", lambda *_: False)
        yield


def both(session: dm.Session, read: Callable[[], Tensor]) -> None:
    """`read` gives the same with and without, and the prefix was run once, where the model allows it."""
    before = session.runner.prefixes["shared"]
    shared = read()
    assert session.runner.prefixes["shared"] == before + 1, session.runner.prefixes
    with whole(session):
        plain = read()
    assert close(shared, plain)


def close(values: Tensor, plain: Tensor) -> bool:
    return bool(((values - plain).norm(dim=-1) <= 1e-5 * plain.norm(dim=-1)).all())


def at_positions(session: dm.Session, tokens: str) -> Control:
    """A control that adds at some tokens of prompts and replies alone."""
    part = Part(kind="add", vectors=5 * basis_of(session, 1), dose=1.0, scope=Scope(site=dm.Site(1), tokens=tokens))  # type: ignore[arg-type]
    return Control(parts=(part,), layout=session.layout, model_name=session.name, made_from={"behaviour": "a test"})


def test_captured_values_are_those_of_whole_prompts(session: dm.Session) -> None:
    after = session.encode_reply("first get")
    both(session, lambda: session.capture(PROMPTS, SITES).values)
    both(session, lambda: session.capture(PROMPTS, SITES, after).values)


def test_so_they_are_with_an_ablation_in_force(session: dm.Session) -> None:
    with session.controlled(ablation(session, strength=0.7)):
        both(session, lambda: session.capture(PROMPTS, SITES).values)


def test_so_are_logits_and_likelihoods(session: dm.Session) -> None:
    replies = [session.encode_reply(text) for text in ("first get the lamp", "yes", "i can not help", "sing it", "an owl", "wash it", "it is 7", "get it")]
    for control in (None, ablation(session)):
        with ExitStack() as stack:
            if control is not None:
                stack.enter_context(session.controlled(control))
            both(session, lambda: session.logits(PROMPTS, replies[0]))
            both(session, lambda: torch.cat(session.reply_log_probs(PROMPTS, replies)))
            both(session, lambda: session.next_logits([session.encode(prompt) for prompt in PROMPTS], range(50)))


def test_prompts_that_share_rows_see_what_they_see_alone(session: dm.Session) -> None:
    """At every token that follows what all begin with, and nowhere but in rows of their own where that cannot be."""
    ids = [session.encode(prompt) for prompt in PROMPTS]
    batch_of = session.runner.after_prefix(ids, [Tail()] * len(ids), packed)
    if batch_of is None:
        assert window(session.model) is not None or session.runner.prefixes["the model computes something else"]
        return
    batch = batch_of(range(len(ids)))
    assert len(batch.input_ids) < len(ids)
    assert batch.inputs()["position_ids"].max() < max(map(len, ids))  # pads stand nowhere
    with torch.no_grad():
        states = session.decoder(**batch.inputs()).last_hidden_state
        for number, row in enumerate(ids):
            own = states[batch.of == number + 1]
            alone = session.decoder(input_ids=torch.tensor([row])).last_hidden_state[0, -len(own) :]
            assert close(own, alone)
            assert torch.equal(states[batch.last][number], own[-1])


def said(session: dm.Session) -> list[tuple[int, ...]]:
    return [reply.ids for reply in session.generate(PROMPTS, 12)]


def test_replies_are_those_to_whole_prompts(session: dm.Session) -> None:
    """Token for token, though pads stand between what is shared and what is not; a window that ends within the prompts would not do."""
    once = window(session.model) is None
    for control in (None, ablation(session, strength=0.7)):
        with session.controlled(control) if control is not None else nullcontext():
            before = session.runner.prefixes["shared"]
            shared = said(session)
            assert session.runner.prefixes["shared"] == before + once, session.runner.prefixes
            with whole(session):
                assert shared == said(session)


@pytest.mark.parametrize("tokens", ["all", "prompt", "reply", "last_and_reply"])
def test_edits_of_some_tokens_of_a_dialogue_reach_the_same_ones(tiny: dict[str, dm.Session], tokens: str) -> None:
    session = tiny["llama"]
    plain = said(session)
    with session.controlled(at_positions(session, tokens)):
        shared = said(session)
        with whole(session):
            assert shared == said(session)
    assert shared != plain


def test_replies_that_reach_beyond_the_window_are_given_to_whole_prompts(tiny: dict[str, dm.Session], monkeypatch: pytest.MonkeyPatch) -> None:
    session = tiny["llama"]
    longest, before = max(len(session.encode(prompt)) for prompt in PROMPTS), session.runner.prefixes["shared"]
    monkeypatch.setattr(session.model.config, "sliding_window", longest + 12, raising=False)
    session.generate(PROMPTS, 12)
    assert session.runner.prefixes["shared"] == before + 1
    session.generate(PROMPTS, 13)
    assert session.runner.prefixes["shared"] == before + 1


@pytest.mark.parametrize("tokens", ["all", "prompt", "reply", "last_and_reply"])
def test_edits_of_some_tokens_reach_the_same_ones(tiny: dict[str, dm.Session], tokens: str) -> None:
    session = tiny["gemma2"]
    plain = session.capture(PROMPTS, SITES).values
    with session.controlled(at_positions(session, tokens)):
        for after in ([], session.encode_reply("first get")):
            both(session, lambda after=after: session.capture(PROMPTS, SITES, after).values)  # type: ignore[misc]
        if tokens != "reply":
            assert not close(session.capture(PROMPTS, SITES).values, plain)


def test_replies_that_come_with_their_prompts(tiny: dict[str, dm.Session]) -> None:
    session = tiny["gemma2"]
    replies = ["first get the lamp", "i can not help with that", "yes", "sing", "an owl", "it is 7", "find it", "get it"]
    prompts = [dm.Prompt.of(prompt, reply=reply) for prompt, reply in zip(PROMPTS, replies)]
    sites = [dm.Site(1, "resid_post", dm.models.Site(0).position), dm.Site(1, "resid_post", "reply"), dm.Site(2, "mlp_out", "reply")]
    both(session, lambda: session.capture(prompts, sites).values)


def test_a_position_inside_what_is_shared_is_read_in_every_row(tiny: dict[str, dm.Session]) -> None:
    session = tiny["gemma2"]
    shortest = min(len(session.encode(prompt)) for prompt in PROMPTS)
    for deep in range(1, shortest + 1):
        sites = [dm.Site(1, "resid_post", -deep), dm.Site(2)]
        shared = session.capture(PROMPTS, sites).values
        with whole(session):
            assert close(shared, session.capture(PROMPTS, sites).values), deep


def test_prompts_that_are_looked_at_whole_are_run_whole(tiny: dict[str, dm.Session]) -> None:
    """A gate is decided at a prompt's end, which is not what all begin with."""
    session = tiny["gemma2"]
    gate = gate_on_length(session, PROMPTS, [True, False] * 4)
    before = session.runner.prefixes["what is in force takes whole prompts"]
    with session.controlled(ablation(session).when(gate)):
        values = session.capture(PROMPTS, SITES).values
    assert session.runner.prefixes["what is in force takes whole prompts"] == before + 1
    assert not close(values, session.capture(PROMPTS, SITES).values)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_prompts_with_controls_of_their_own_share_a_prefix_with_their_like(tiny: dict[str, dm.Session], family: str) -> None:
    """The prefix is run once for every control, and each row goes on from its own."""
    session = tiny[family]
    strong, weak = ablation(session), ablation(session, strength=0.4)
    for rows in ([strong, weak, weak, strong, strong, weak, weak, strong], [None] * 7 + [weak], [strong] * 8):
        with session.controlled_rows(rows):
            both(session, lambda: session.capture(PROMPTS, SITES).values)
            both(session, lambda: session.logits(PROMPTS, session.encode_reply("first")))
        for control in (strong, weak, None):
            own = [row for row, other in enumerate(rows) if other is control]
            if own:
                with session.controlled_rows(rows):
                    values = session.capture(PROMPTS, SITES).values[own]
                with session.controlled(control) if control is not None else nullcontext():
                    assert close(values, session.capture([PROMPTS[row] for row in own], SITES).values)


def test_replies_of_prompts_with_controls_of_their_own(tiny: dict[str, dm.Session]) -> None:
    session = tiny["llama"]
    pushed, ablated = at_positions(session, "reply"), ablation(session)
    with session.controlled_rows([pushed, ablated, ablated, pushed] * 2):
        before = session.runner.prefixes["shared"]
        shared = said(session)
        assert session.runner.prefixes["shared"] == before + 1
        with whole(session):
            assert shared == said(session)


def test_as_many_controls_as_prompts_share_nothing(tiny: dict[str, dm.Session]) -> None:
    session = tiny["llama"]
    before = session.runner.prefixes["too little is shared"]
    with session.controlled_rows([ablation(session, strength=step / 10) for step in range(8)]):
        session.capture(PROMPTS, SITES)
    assert session.runner.prefixes["too little is shared"] == before + 1


def test_a_model_that_computes_something_else_is_run_whole(tiny: dict[str, dm.Session], monkeypatch: pytest.MonkeyPatch) -> None:
    session = dm.load("organism", device="cpu")
    with whole(session):
        plain = session.capture(PROMPTS, SITES[:3]).values
    own = runner.holds.__globals__["prefix_cache"]

    def forgetful(*given: object) -> object:
        cache = own(*given)
        for layer in cache.layers:
            layer.keys = torch.zeros_like(layer.keys)
        return cache

    monkeypatch.setitem(runner.holds.__globals__, "prefix_cache", forgetful)
    assert close(session.capture(PROMPTS, SITES[:3]).values, plain)
    assert session.runner.prefixes["the model computes something else"] == 1
    assert not session.runner.prefixes["shared"]


ROWS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=2, max_size=6)


@given(ROWS, st.integers(1, 4), st.integers(0, 3), st.integers(1, 3), st.integers(0, 12))
@settings(max_examples=120, deadline=None)
def test_what_is_shared_is_shared_by_all_and_read_by_none(rows: list[list[int]], read: int, reply: int, own: int, opening: int) -> None:
    rows = [[7] * opening + row for row in rows]
    length = shared_length(rows, [Tail(read, reply)] * len(rows), own)
    assert all(row[:length] == rows[0][:length] for row in rows)
    longest = max(0, min(len(row) - max(read, reply + own) for row in rows))
    assert length <= longest
    assert length == longest or len({row[length] for row in rows}) > 1  # no longer one would do


def test_few_tokens_are_not_worth_a_second_pass(tiny: dict[str, dm.Session]) -> None:
    session = tiny["gemma2"]
    before = session.runner.prefixes["too little is shared"]
    session.capture(PROMPTS[:2], SITES)
    assert session.runner.prefixes["too little is shared"] == before + 1


def test_an_adapter_in_force_acts_on_what_is_shared_too(tiny: dict[str, dm.Session]) -> None:
    session, rng = tiny["gemma2"], torch.Generator().manual_seed(0)
    linear = {name: module for name, module in session.model.named_modules() if isinstance(module, torch.nn.Linear) and "layers" in name}

    def noise(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=rng)

    adapter = Adapter(low_rank={name: (noise(2, own.in_features), noise(own.out_features, 2)) for name, own in linear.items()})
    plain = session.capture(PROMPTS, SITES).values
    with session.controlled(Control(parts=(), layout=session.layout, model_name=session.name, adapters=(adapter,))):
        both(session, lambda: session.capture(PROMPTS, SITES).values)
        assert not close(session.capture(PROMPTS, SITES).values, plain)
