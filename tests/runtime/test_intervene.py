"""Run-time edits act on the rows and tokens they name, on nothing else, and are gone afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import demeanor as dm
from demeanor.errors import ControlError, ModelError
from families import FAMILIES
from making import PROMPTS, a_direction, ablation, basis_of, gate_on_length

SITES = [dm.Site(0, "embed"), *(dm.Site(layer) for layer in range(3))]


def test_nothing_of_an_ablated_direction_is_left_anywhere(session: dm.Session) -> None:
    control = ablation(session, rank=3)
    with session.controlled(control):
        values = session.capture(PROMPTS, SITES).values
    left = (values @ control.parts[0].vectors.T).abs().amax(-1) / values.norm(dim=-1)
    assert left.max() < 1e-5


def test_half_strength_leaves_half_where_no_norm_follows(tiny: dict[str, dm.Session]) -> None:
    session = tiny["llama"]
    r = basis_of(session, 1)[0]
    embed = [dm.Site(0, "embed")]
    base = session.capture(PROMPTS, embed).values @ r
    with session.controlled(ablation(session, strength=0.5)):
        assert torch.allclose(session.capture(PROMPTS, embed).values @ r, base / 2, atol=1e-5)


def test_the_model_is_untouched_after_the_context_even_after_an_error(session: dm.Session) -> None:
    before = session.logits(PROMPTS)
    with session.controlled(ablation(session)):
        assert not torch.allclose(session.logits(PROMPTS), before, atol=1e-3)
    assert torch.equal(session.logits(PROMPTS), before)
    with pytest.raises(ModelError), session.controlled(ablation(session)):
        session.capture(PROMPTS, [dm.Site(99)])
    assert torch.equal(session.logits(PROMPTS), before)


def test_dose_zero_is_the_untouched_model(session: dm.Session) -> None:
    before = session.logits(PROMPTS)
    with session.controlled(ablation(session).scaled(0.0)):
        assert torch.allclose(session.logits(PROMPTS), before, atol=1e-6)


def edited_by_hand(session: dm.Session, ids: list[int], layer: int, offset: Tensor, tokens: slice) -> Tensor:
    """Logits of one unpadded row with an offset added to a block's output on some tokens, by a hook of the test's own."""

    def hook(module: object, args: object, out: object) -> object:
        x = (out[0] if isinstance(out, tuple) else out).clone()  # type: ignore[index]
        x[:, tokens] += offset
        return (x, *out[1:]) if isinstance(out, tuple) else x

    handle = session.model.get_submodule(session.layout.blocks[layer]).register_forward_hook(hook)
    with torch.no_grad():
        logits: Tensor = session.model(torch.tensor([ids])).logits[0]
    handle.remove()
    return logits


def test_add_acts_on_the_last_prompt_token_and_the_reply_only(session: dm.Session) -> None:
    direction = a_direction(session, dm.Site(1), gap=4.0)
    offset = 0.7 * direction.gap * direction.basis[0]
    replies = [
        session.encode_reply("first get the lamp ."),
        session.encode_reply("no"),
        session.encode_reply("to wash it , use a lamp"),
        [7],
    ]
    with session.controlled(dm.add(direction, 0.7)):
        batch = session.reply_log_probs(PROMPTS, replies)
        first = session.logits(PROMPTS)
    for row, (prompt, reply) in enumerate(zip(PROMPTS, replies, strict=True)):
        ids = session.encode(prompt)
        by_hand = edited_by_hand(session, [*ids, *reply], 1, offset, slice(len(ids) - 1, None))[len(ids) - 1 : -1]
        assert torch.allclose(batch[row], by_hand.log_softmax(-1), atol=1e-4)
        assert torch.allclose(first[row], by_hand[0], atol=1e-4)


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_add_can_act_on_the_one_token_where_the_direction_was_read(tiny: dict[str, dm.Session], family: str, after: int) -> None:
    session = tiny[family]
    direction = replace(a_direction(session, dm.Site(1), gap=4.0), after=(5,) * after)
    offset = direction.gap * direction.basis[0]
    replies = [session.encode_reply("first get the lamp ."), [7, 8], session.encode_reply("to wash it , use a lamp"), [7]]
    with session.controlled(dm.add(direction, 1.0, "read")):
        batch = session.reply_log_probs(PROMPTS, replies)
    for row, (prompt, reply) in enumerate(zip(PROMPTS, replies, strict=True)):
        ids = session.encode(prompt)
        at = len(ids) - 1 + after  # beyond the end of a shorter reply: nothing is moved
        by_hand = edited_by_hand(session, [*ids, *reply], 1, offset, slice(at, at + 1))[len(ids) - 1 : -1]
        assert torch.allclose(batch[row], by_hand.log_softmax(-1), atol=1e-4)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_the_token_that_was_read_is_the_one_that_is_moved_while_generating(organism: dm.Session, after: int) -> None:
    direction = replace(a_direction(organism, dm.Site(3), gap=30.0), after=(5,) * after)
    offset = direction.gap * direction.basis[0]
    with organism.controlled(dm.add(direction, 1.0, "read")):
        said = [reply.ids for reply in organism.generate(PROMPTS, 8)]
    for prompt, ids in zip(PROMPTS, said):
        start = organism.encode(prompt)
        for length in range(len(ids)):  # token by token, no cache
            at = len(start) - 1 + after
            logits = edited_by_hand(organism, [*start, *ids[:length]], 3, offset, slice(at, at + 1))
            assert int(logits[-1].argmax()) == ids[length]


def test_generation_with_a_cache_is_generation_without_one(organism: dm.Session) -> None:
    direction = a_direction(organism, dm.Site(3), gap=150.0)
    offset = direction.gap * direction.basis[0]
    with organism.controlled(dm.add(direction, 1.0)):
        replies = organism.generate(PROMPTS, 12)
    changed = 0
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        ids, said = organism.encode(prompt), []
        while len(said) < len(reply.ids):
            logits = edited_by_hand(organism, [*ids, *said], 3, offset, slice(len(ids) - 1, None))
            said.append(int(logits[-1].argmax()))
        assert tuple(said) == reply.ids
        changed += reply.text != organism.chat(prompt, 12)
    assert changed > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_pads_are_never_edited(tiny: dict[str, dm.Session], family: str) -> None:
    session = tiny[family]
    seen: list[Tensor] = []
    block = session.model.get_submodule(session.layout.blocks[1])
    with session.controlled(dm.add(a_direction(session, dm.Site(0), gap=50.0), 1.0)), torch.no_grad():
        handle = block.register_forward_pre_hook(lambda m, a, k: seen.append((a[0] if a else k["hidden_states"]).clone()), with_kwargs=True)
        session.logits(PROMPTS)
        handle.remove()
    handle = block.register_forward_pre_hook(lambda m, a, k: seen.append((a[0] if a else k["hidden_states"]).clone()), with_kwargs=True)
    session.logits(PROMPTS)
    handle.remove()
    edited, plain = seen
    lengths = sorted((len(session.encode(p)) for p in PROMPTS), reverse=True)
    for row, length in enumerate(lengths):
        pads = edited.shape[1] - length
        assert torch.equal(edited[row, : edited.shape[1] - 1].nan_to_num(), plain[row, : edited.shape[1] - 1].nan_to_num()), pads
        assert not torch.allclose(edited[row, -1], plain[row, -1])


def test_a_gate_lets_whole_rows_through_and_no_others(organism: dm.Session) -> None:
    fires = [True, False, True, False]
    control = ablation(organism, rank=30)
    gated = control.when(gate_on_length(organism, PROMPTS, fires))
    base = [r.ids for r in organism.generate(PROMPTS, 20)]
    with organism.controlled(control):
        edited = [r.ids for r in organism.generate(PROMPTS, 20)]
    with organism.controlled(gated):
        got = [r.ids for r in organism.generate(PROMPTS, 20)]
        alone = [organism.generate([prompt], 20)[0].ids for prompt in PROMPTS]
    assert got == [e if fired else b for e, b, fired in zip(edited, base, fires, strict=True)]
    assert got == alone
    assert edited[0] != base[0]


def test_a_gate_acts_in_plain_generate_and_beams_too(organism: dm.Session) -> None:
    control = ablation(organism, rank=30).when(gate_on_length(organism, PROMPTS, [True, False, True, False]))
    ids = torch.tensor([organism.encode(PROMPTS[1])])
    kwargs = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False, "num_beams": 3, "pad_token_id": 0}
    plain = organism.model.generate(ids, **kwargs)
    with organism.controlled(control):
        assert torch.equal(organism.model.generate(ids, **kwargs), plain)  # this row's gate stays shut
    with organism.controlled(control):
        other = torch.tensor([organism.encode(PROMPTS[0])])
        edited = organism.model.generate(other, **{**kwargs, "attention_mask": torch.ones_like(other)})
    assert not torch.equal(edited, organism.model.generate(other, **{**kwargs, "attention_mask": torch.ones_like(other)}))


def test_controls_nest_and_compose_in_order(organism: dm.Session) -> None:
    first, second = ablation(organism, seed=1), dm.add(a_direction(organism, dm.Site(2), gap=20.0, seed=2), 1.0)
    with organism.controlled(first.then(second)):
        together = organism.logits(PROMPTS)
    with organism.controlled(first), organism.controlled(second):
        nested = organism.logits(PROMPTS)
    assert torch.allclose(together, nested, atol=1e-4)


@pytest.mark.parametrize("site", [dm.Site(1), dm.Site(5)])
def test_capture_under_a_gate_reads_the_edited_stream_once(organism: dm.Session, site: dm.Site) -> None:
    # The gate is read in a pass of its own, below or above what is captured.
    gate = replace(gate_on_length(organism, PROMPTS, [True, False, True, False]), site=dm.Site(3))
    untouched = organism.capture(PROMPTS, [site]).values
    with organism.controlled(ablation(organism).when(gate).scaled(0.0)):
        assert torch.allclose(organism.capture(PROMPTS, [site]).values, untouched, atol=1e-4)


def test_gated_controls_nest_as_they_compose(organism: dm.Session) -> None:
    one = ablation(organism, rank=30, seed=1).when(gate_on_length(organism, PROMPTS, [True, False, True, False]))
    other = ablation(organism, rank=30, seed=2).when(gate_on_length(organism, PROMPTS, [False, False, True, True]))
    with organism.controlled(one.then(other)):
        together = organism.logits(PROMPTS)
    with organism.controlled(one), organism.controlled(other):
        nested = organism.logits(PROMPTS)
    assert torch.allclose(together, nested, atol=1e-4)
    with organism.controlled(ablation(organism, rank=30, seed=3)), organism.controlled(other):
        outer = organism.logits(PROMPTS)  # the gate reads the unedited model, whatever acts outside
    with organism.controlled(ablation(organism, rank=30, seed=3).then(other)):
        assert torch.allclose(organism.logits(PROMPTS), outer, atol=1e-4)


def test_a_control_for_another_structure_is_refused_with_both_named(tiny: dict[str, dm.Session]) -> None:
    control = ablation(tiny["llama"])
    with pytest.raises(ControlError) as caught, tiny["gpt_neox"].controlled(control):
        pass
    assert tiny["llama"].layout.hash in str(caught.value)
    assert tiny["gpt_neox"].layout.hash in str(caught.value)
