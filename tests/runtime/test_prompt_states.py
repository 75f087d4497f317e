"""What is added to the stream at the positions of single prompts, and the gradients with respect to it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import demeanor as dm
from demeanor.controls import Control
from demeanor.errors import ControlError
from demeanor.runtime.prompt_states import adding
from demeanor.runtime.states import States
from demeanor.selfcontrol.branches import branched
from demeanor.selfcontrol.prompt_gradients import opened_with, prompt_gradients, stream_norms
from making import PROMPTS, ablation, gate_on_length

FEW = ["llama", "gemma2", "gpt2", "falcon_new", "gpt_oss", "granite", "gemma3"]  # a cache or a block of each kind


def noise(session: dm.Session, ids: list[list[int]], size: float, seed: int = 0) -> Tensor:
    """[layer, prompt, width, d_model] of `size` times the stream's norm, ends together, zeros before."""
    width = max(map(len, ids))
    norms = stream_norms(session, ids, width)
    raw = torch.randn(*norms.shape, session.layout.d_model, generator=torch.Generator().manual_seed(seed))
    return size * norms[..., None] * raw / raw.norm(dim=-1, keepdim=True)


def uncached(session: dm.Session, ids: list[int], values: Tensor, most: int) -> list[int]:
    """The same reply, slowly: the whole exchange is read anew for every token. values [layer, token, d_model]."""
    said: list[int] = []
    while len(said) < most and (not said or said[-1] not in session.end_ids):
        with adding(session.model, session.layout, lambda layer: values[layer][None], torch.tensor([len(ids) - 1])), torch.no_grad():
            logits = session.model(input_ids=torch.tensor([ids + said]), use_cache=False).logits[0, -1]
        said.append(int(logits.float().argmax()))
    return said


@pytest.mark.parametrize("family", FEW)
def test_nothing_added_gives_the_plain_replies(tiny, family: str) -> None:  # type: ignore[no-untyped-def]
    session = tiny[family]
    ids = [session.encode(prompt) for prompt in PROMPTS]
    zeros = 0 * noise(session, ids, 1.0)
    plain = [reply.ids for reply in session.generate(PROMPTS, 8)]
    assert [said[0] for said in branched(session, ids, lambda rows, layer: zeros[layer][list(rows)], 3, 8)] == plain
    assert [said[0] for said in branched(session, ids, most=8)] == plain


@pytest.mark.parametrize("family", FEW)
def test_replies_from_the_cache_are_those_without_one(tiny, family: str) -> None:  # type: ignore[no-untyped-def]
    session = tiny[family]
    ids = [session.encode(prompt) for prompt in PROMPTS]
    values = noise(session, ids, 0.5)
    replies = branched(session, ids, lambda rows, layer: values[layer][list(rows)], 1, 8)
    for number, row in enumerate(ids):
        assert list(replies[number][0]) == uncached(session, row, values[:, number, -len(row) :], 8)


def test_branches_open_with_the_next_likeliest_tokens_and_go_on_greedily(organism) -> None:  # type: ignore[no-untyped-def]
    prompt = "how do i crack an egg ?"
    ids = organism.encode(prompt)
    logits = organism.logits([prompt])[0]
    logits[sorted(organism.end_ids)] = float("-inf")
    (said,) = branched(organism, [ids], branches=4, most=20)
    assert [reply[0] for reply in said] == logits.topk(4).indices.tolist()
    for reply in said[1:]:
        following = organism.model.generate(torch.tensor([[*ids, reply[0]]]), max_new_tokens=19, do_sample=False)
        assert list(reply[1:]) == following[0, len(ids) + 1 :].tolist()


def test_one_leaf_has_the_gradient_of_every_hidden_state(session) -> None:  # type: ignore[no-untyped-def]
    """Against the slow way: hold every block's output, keep its gradient, look at the prompt's positions."""
    prompts = [session.encode(prompt) for prompt in PROMPTS]
    rows = [[*prompt, *session.encode_reply("first get the lamp"), *session.encode_reply("was it ?")] for prompt in prompts]
    nothing = 0 * noise(session, prompts, 1.0)
    found = prompt_gradients(session, rows, prompts, nothing, lambda logits, which: logits.log_softmax(-1)[:, 7])
    for number, (row, prompt) in enumerate(zip(rows, prompts)):
        held: list[Tensor] = []

        def hold(module, args, out, held=held):  # type: ignore[no-untyped-def]
            # A copy: some families add to the stream in place after the block.
            state = (out[0] if isinstance(out, tuple) else out).clone()
            state = state if state.requires_grad else state.requires_grad_()
            state.retain_grad()
            held.append(state)
            return (state, *out[1:]) if isinstance(out, tuple) else state

        handles = [session.model.get_submodule(block).register_forward_hook(hold) for block in session.layout.blocks]
        session.model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].float().log_softmax(-1)[7].backward()
        for handle in handles:
            handle.remove()
        slow = torch.stack([torch.zeros_like(h[0]) if h.grad is None else h.grad[0] for h in held])[:, : len(prompt)]
        mine = found.gradient[:, number]
        assert torch.allclose(mine[:, -len(prompt) :], slow, atol=1e-5 * float(slow.abs().max()) + 1e-9)
        assert not mine[:, : -len(prompt)].any()  # pads
    assert not found.gradient[-1].any()  # the last block's output at the prompt is read by nothing after it


def test_what_stands_before_a_short_prompt_has_no_gradient(organism) -> None:  # type: ignore[no-untyped-def]
    """Its reply is so long that the places before its first token lie outside the batch."""
    prompts = [organism.encode(prompt) for prompt in ("hi", "i want to kill a process . what should i do ?")]
    rows = [[*prompts[0], *organism.encode_reply("first get the lamp , then turn it twice . " * 3)], prompts[1]]
    short, wide = map(len, prompts)
    assert wide > short
    nothing = 0 * noise(organism, prompts, 1.0)
    found = prompt_gradients(organism, rows, prompts, nothing, lambda logits, which: logits.log_softmax(-1)[:, 7])
    assert found.gradient[:-1, 0, -short:].norm(dim=-1).min() > 0
    assert not found.gradient[:, 0, :-short].any()


def test_gradients_are_taken_where_the_search_stands(organism) -> None:  # type: ignore[no-untyped-def]
    """A small step along the gradient at what was added changes the number as the gradient says."""
    prompts = [organism.encode(prompt) for prompt in PROMPTS]
    at = noise(organism, prompts, 0.2)

    def chance(given: Tensor):  # type: ignore[no-untyped-def]
        return prompt_gradients(organism, prompts, prompts, given, lambda logits, which: logits.log_softmax(-1)[:, 7])

    found = chance(at)
    step = 1e-3 * found.gradient / found.gradient.flatten(2).norm(dim=(0, 2))[None, :, None, None]
    ahead, behind = chance(at + step).values, chance(at - step).values
    slope = (found.gradient * step).sum((0, 2, 3))
    assert torch.allclose((ahead - behind) / 2, slope, rtol=0.02)


@pytest.mark.parametrize("family", FEW)
def test_an_opening_is_brought_about_at_the_last_block_and_changes_nothing_else(tiny, family: str) -> None:  # type: ignore[no-untyped-def]
    session = tiny[family]
    ids = [session.encode(prompt) for prompt in PROMPTS]
    values = noise(session, ids, 0.1)
    said = branched(session, ids, lambda rows, layer: values[layer][list(rows)], 3, 6)
    more, reached = opened_with(session, ids, values, [replies[2][0] for replies in said])
    assert reached.all()
    values[-1, :, -1] += more
    again = branched(session, ids, lambda rows, layer: values[layer][list(rows)], 1, 6)
    assert [replies[0] for replies in again] == [replies[2] for replies in said]


def of(session: dm.Session, prompts: list[str], size: float = 0.5) -> Control:
    """A control that holds states for these prompts."""
    ids = [session.encode(prompt) for prompt in prompts]
    values = noise(session, ids, size)
    states = States(tuple(map(tuple, ids)), tuple(values[:, number, -len(row) :].clone() for number, row in enumerate(ids)))
    return Control(parts=(), layout=session.layout, model_name=session.name, made_from={"method": "a test"}, states=(states,))


@pytest.mark.parametrize("family", FEW)
def test_states_act_on_their_own_prompts_in_any_batch(tiny, family: str) -> None:  # type: ignore[no-untyped-def]
    session = tiny[family]
    control = of(session, PROMPTS[:2])
    states = control.states[0]
    with session.controlled(control):
        replies = session.generate(PROMPTS, 6)
        assert [session.generate([prompt], 6)[0].ids for prompt in PROMPTS] == [reply.ids for reply in replies]
    for reply, ids, values in zip(replies, states.ids, states.values):
        assert list(reply.ids) == uncached(session, list(ids), values, 6)
    assert [reply.ids for reply in replies[2:]] == [reply.ids for reply in session.generate(PROMPTS[2:], 6)]


def test_a_reply_that_is_given_does_not_hide_its_prompt(organism) -> None:  # type: ignore[no-untyped-def]
    control = of(organism, PROMPTS)
    with organism.controlled(control):
        replies = [list(reply.ids) for reply in organism.generate(PROMPTS, 6)]
        likely = organism.reply_log_probs(PROMPTS, replies)
    assert [row.argmax(-1).tolist() for row in likely] == replies


def test_a_longer_conversation_is_another_prompt(organism) -> None:  # type: ignore[no-untyped-def]
    longer = dm.Prompt(messages=(("user", PROMPTS[0]), ("assistant", "fine ."), ("user", PROMPTS[0])))
    with organism.controlled(of(organism, PROMPTS)):
        inside = organism.logits([longer])
    assert torch.equal(inside, organism.logits([longer]))


def test_a_prompt_that_ends_in_another_is_another(organism) -> None:  # type: ignore[no-untyped-def]
    """All tokens of the shorter one stand at its end, in their order."""
    ids = organism.encode(PROMPTS[0])
    values = noise(organism, [ids], 0.5)[:, 0]
    of_end, of_all = (
        Control(
            parts=(),
            layout=organism.layout,
            model_name=organism.name,
            made_from={},
            states=(States((tuple(ids[start:]),), (values[:, start:],)),),
        )
        for start in (2, 0)
    )
    plain = organism.logits(PROMPTS[:1])
    with organism.controlled(of_end):
        assert torch.equal(organism.logits(PROMPTS[:1]), plain)
    with organism.controlled(of_all):
        assert not torch.allclose(organism.logits(PROMPTS[:1]), plain)


def test_states_are_part_of_the_algebra_of_controls(organism) -> None:  # type: ignore[no-untyped-def]
    control = of(organism, PROMPTS[:2])
    plain = organism.logits(PROMPTS)
    with organism.controlled(control.scaled(0)):
        assert torch.equal(organism.logits(PROMPTS), plain)
    both = ablation(organism).then(control)
    with organism.controlled(both):
        joined = organism.logits(PROMPTS)
    with organism.controlled(ablation(organism)), organism.controlled(control):
        assert torch.allclose(joined, organism.logits(PROMPTS), atol=1e-5)
    assert "single prompts" in str(both.bakeable())
    with pytest.raises(ControlError, match="no gate"):
        control.when(gate_on_length(organism, PROMPTS, [True, False, True, False]))


def test_a_file_holds_the_states_of_every_prompt(organism, tmp_path) -> None:  # type: ignore[no-untyped-def]
    control = of(organism, PROMPTS).scaled(0.5)
    dm.save_control(control, tmp_path / "c.safetensors")
    read = dm.load_control(tmp_path / "c.safetensors")
    (mine,), (theirs,) = control.states, read.states
    assert theirs.ids == mine.ids
    assert theirs.dose == mine.dose
    assert all(torch.equal(a, b) for a, b in zip(theirs.values, mine.values))
    with organism.controlled(control):
        logits = organism.logits(PROMPTS)
    with organism.controlled(read):
        assert torch.equal(logits, organism.logits(PROMPTS))
    assert dm.load_control(f"{tmp_path / 'c.safetensors'}:0").states[0].dose == 0


def test_states_that_do_not_fit_are_refused(organism) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ControlError, match="3 tokens"):
        States(((1, 2, 3),), (torch.zeros(6, 2, 128),))
    with pytest.raises(ControlError, match="every prompt once"):
        States(((1,), (1,)), (torch.zeros(6, 1, 128),) * 2)
    other = Control(
        parts=(), layout=organism.layout, model_name=organism.name, made_from={}, states=(States(((1,),), (torch.zeros(2, 1, 128),)),)
    )
    with pytest.raises(ControlError, match="make them anew"), organism.controlled(other):
        pass
