"""What is in force belongs to whoever put it in force: threads share a session, and never a control."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import demeanor as dm
from demeanor.controls import Control
from demeanor.errors import DataError
from demeanor.runtime.acting import in_force
from demeanor.runtime.adapter import Adapter
from demeanor.runtime.prompt_states import adding
from demeanor.runtime.runner import one_thread
from demeanor.runtime.states import States
from making import PROMPTS, a_direction, ablation, gate_on_length

pytestmark = pytest.mark.slow

ROUNDS, TOKENS = 3, 8
Asked = tuple[list[tuple[int, ...]], Tensor, list[Tensor], Tensor]


@pytest.fixture(scope="module")
def controls(organism: dm.Session) -> dict[str, Control]:
    """One of every kind."""
    layout, name, rng = organism.layout, organism.name, torch.Generator().manual_seed(3)
    ids = tuple(organism.encode(PROMPTS[0]))
    states = States((ids,), (20 * torch.randn(layout.n_layers, len(ids), layout.d_model, generator=rng),))
    linear = {name: module for name, module in organism.model.named_modules() if name.endswith("down_proj")}
    low_rank = {
        key: (torch.randn(2, layer.in_features, generator=rng), torch.randn(layer.out_features, 2, generator=rng))
        for key, layer in linear.items()
    }
    words = torch.randn(3, layout.d_model, generator=rng)
    return {
        "writers": ablation(organism, rank=90),
        "gated": ablation(organism, rank=90, seed=1).when(gate_on_length(organism, PROMPTS, [True, False, True, False])),
        "reply": dm.add(a_direction(organism, dm.Site(2), gap=2000.0), 1.0, "reply"),
        "states": Control(parts=(), layout=layout, model_name=name, states=(states,)),
        "adapter": Control(parts=(), layout=layout, model_name=name, adapters=(Adapter(low_rank=low_rank),)),
        "embeddings": Control(parts=(), layout=layout, model_name=name, adapters=(Adapter(virtual_tokens=words),)),
    }


def asked(session: dm.Session, how: AbstractContextManager[Any]) -> Asked:
    """Whatever can be asked of a model, with a control in force or none."""
    with how:
        replies = [reply.ids for reply in session.generate(PROMPTS, TOKENS)]
        values = session.capture(PROMPTS, [dm.Site(1), dm.Site(3)], after=[5, 6]).values
        return replies, session.logits(PROMPTS), session.reply_log_likelihoods(PROMPTS, [(5, 6, 7)] * len(PROMPTS)), values


def same(one: Asked, other: Asked) -> bool:
    tensors = [(one[1], other[1]), *zip(one[2], other[2], strict=True), (one[3], other[3])]
    return one[0] == other[0] and all(torch.equal(a, b) for a, b in tensors)


def at_once(*jobs: Callable[[], object]) -> list[Any]:
    """What every job gives, each run again and again in a thread of its own, all of them begun together."""
    gate = threading.Barrier(len(jobs))

    def run(job: Callable[[], object]) -> list[object]:
        gate.wait()
        return [job() for _ in range(ROUNDS)]

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(run, job) for job in jobs]]


@pytest.fixture
def impatient() -> Iterator[None]:
    """Threads that take turns far more often than usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


# -- threads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("writers", "gated", "states"), ("adapter", "embeddings", "reply")])
def test_four_threads_have_their_own_controls_and_none(
    organism: dm.Session, controls: dict[str, Control], names: tuple[str, ...], impatient: None
) -> None:
    def job(name: str | None) -> Callable[[], Asked]:
        return lambda: asked(organism, organism.controlled(controls[name]) if name else nullcontext())

    jobs = [job(name) for name in (*names, None)]
    alone = [one() for one in jobs]
    assert not any(same(one, alone[-1]) for one in alone[:-1])  # every control does something
    for wanted, got in zip(alone, at_once(*jobs), strict=True):
        assert all(same(one, wanted) for one in got)
    assert same(asked(organism, nullcontext()), alone[-1])


def test_rows_of_controls_are_each_threads_own(organism: dm.Session, controls: dict[str, Control], impatient: None) -> None:
    one = [controls["writers"], None, controls["gated"], None]
    other = [None, controls["reply"], None, controls["writers"]]
    jobs = [lambda rows=rows: asked(organism, organism.controlled_rows(rows)) for rows in (one, other)]
    plain = asked(organism, nullcontext())
    jobs.append(lambda: asked(organism, organism.controlled_rows([None] * len(PROMPTS))))
    alone = [job() for job in jobs]
    assert same(alone[-1], plain)
    for wanted, got in zip(alone, at_once(*jobs), strict=True):
        assert all(same(each, wanted) for each in got)


def test_passes_of_the_model_itself_are_the_callers_too(organism: dm.Session, controls: dict[str, Control], impatient: None) -> None:
    ids = torch.tensor([organism.encode(PROMPTS[0])])

    def said(name: str | None) -> list[int]:
        with organism.controlled(controls[name]) if name else nullcontext():
            out = organism.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
        return list(out[0].tolist())

    jobs = [lambda name=name: said(name) for name in ("writers", "gated", "adapter", None)]
    alone = [job() for job in jobs]
    assert len(set(map(tuple, alone))) == 4
    assert at_once(*jobs) == [[wanted] * ROUNDS for wanted in alone]


def test_a_thread_without_a_control_has_the_model_as_it_is(organism: dm.Session, controls: dict[str, Control]) -> None:
    plain = asked(organism, nullcontext())
    for control in controls.values():
        with organism.controlled(control), ThreadPoolExecutor(1) as pool:
            assert same(pool.submit(asked, organism, nullcontext()).result(), plain)


def test_what_is_added_or_watched_in_one_thread_is_not_seen_in_another(organism: dm.Session, controls: dict[str, Control]) -> None:
    plain = asked(organism, nullcontext())
    huge = torch.full((len(PROMPTS), 1, organism.layout.d_model), 1e4)
    with ThreadPoolExecutor(1) as pool:
        with adding(organism.model, organism.layout, lambda layer: huge, torch.tensor([-1] * len(PROMPTS))):
            assert same(pool.submit(asked, organism, nullcontext()).result(), plain)
        with organism.watched(organism.controlled(controls["writers"])) as seen:
            pool.submit(organism.generate, PROMPTS, TOKENS).result()
    assert seen.rows.seen == 0


def test_an_error_in_one_thread_leaves_nothing_in_force(organism: dm.Session, controls: dict[str, Control], impatient: None) -> None:
    plain = asked(organism, nullcontext())
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in organism.model.modules())

    def fails() -> str:
        try:
            with organism.controlled_rows([controls["writers"]]):
                organism.generate(PROMPTS, TOKENS)
        except DataError as error:
            return str(error)
        return "nothing was wrong"

    def breaks() -> int:
        with pytest.raises(ZeroDivisionError), organism.controlled(controls["embeddings"]):
            organism.runner.in_batches([[5]], lambda batch: [1 // 0], "Dividing")
        return len(in_force(organism.model))

    told, left, asked_meanwhile = at_once(fails, breaks, lambda: asked(organism, nullcontext()))
    assert set(told) == {"There are 1 controls and 4 prompts; give one control per prompt."}
    assert left == [0] * ROUNDS
    assert all(same(one, plain) for one in asked_meanwhile)
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in organism.model.modules()) == hooks


# -- other contexts --------------------------------------------------------------------------------


def test_tasks_of_one_thread_have_their_own_controls(organism: dm.Session, controls: dict[str, Control]) -> None:
    async def said(name: str | None) -> list[tuple[int, ...]]:
        with organism.controlled(controls[name]) if name else nullcontext():
            await asyncio.sleep(0)  # the other tasks come in here, with this control in force
            return [reply.ids for reply in organism.generate(PROMPTS, TOKENS)]

    async def together() -> list[list[tuple[int, ...]]]:
        return list(await asyncio.gather(*(said(name) for name in ("writers", "reply", None))))

    alone = [asyncio.run(said(name)) for name in ("writers", "reply", None)]
    assert asyncio.run(together()) == alone
    assert alone[0] != alone[2] != alone[1]


def test_a_thread_that_a_task_hands_its_work_to_has_the_tasks_control(organism: dm.Session, controls: dict[str, Control]) -> None:
    async def said() -> list[str]:
        with organism.controlled(controls["writers"]):
            return await asyncio.gather(*(asyncio.to_thread(organism.chat, prompt, TOKENS) for prompt in PROMPTS))

    with organism.controlled(controls["writers"]):
        wanted = [organism.chat(prompt, TOKENS) for prompt in PROMPTS]
    assert asyncio.run(said()) == wanted


def test_what_another_thread_has_taken_off_is_gone(organism: dm.Session, controls: dict[str, Control]) -> None:
    plain = asked(organism, nullcontext())
    held = ExitStack()
    held.enter_context(organism.controlled_rows([controls["writers"]]))
    held.enter_context(organism.controlled(controls["embeddings"]))
    thread = threading.Thread(target=held.close)
    thread.start()
    thread.join()
    assert in_force(organism.model) == ()
    assert same(asked(organism, nullcontext()), plain)


def test_uncontrolled_is_of_one_model(organism: dm.Session, tiny: Mapping[str, dm.Session]) -> None:
    with tiny["llama"].controlled(ablation(tiny["llama"])), organism.controlled(ablation(organism)):
        edited = tiny["llama"].logits(PROMPTS)
        with organism.uncontrolled():
            assert in_force(organism.model) == ()
            assert torch.equal(tiny["llama"].logits(PROMPTS), edited)
        assert len(in_force(organism.model)) == 1


# -- torch's threads -------------------------------------------------------------------------------


def test_the_number_of_threads_is_what_it_was(organism: dm.Session) -> None:
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
            with one_thread():
                pass
            assert torch.get_num_threads() == 1
        at_once(*[lambda: organism.logits(PROMPTS[:1])] * 3)
        with ThreadPoolExecutor(1) as pool:
            assert torch.get_num_threads() == pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(usual)
