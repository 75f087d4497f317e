"""Captured values are what the model computes, whatever the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import demeanor as dm
from demeanor.errors import DataError, ModelError
from demeanor.runtime.batches import groups
from making import PROMPTS


def reference(session: dm.Session, prompt: str) -> list[Tensor]:
    """Every block's output for one unpadded prompt, by hooks of the test's own: hidden_states ends after the final norm."""
    outs: list[Tensor] = []
    blocks = [session.model.get_submodule(name) for name in session.layout.blocks]
    handles = [b.register_forward_hook(lambda m, a, o: outs.append((o[0] if isinstance(o, tuple) else o).clone())) for b in blocks]
    with torch.no_grad():
        session.model(torch.tensor([session.encode(prompt)]))
    for handle in handles:
        handle.remove()
    return [out[0] for out in outs]


def test_a_position_that_is_none_is_told(organism: dm.Session) -> None:
    with pytest.raises(DataError, match="'last' is no position"):
        dm.Site(1, "resid_post", "last")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"There is no position 0 in a prompt of .* tokens"):
        organism.capture(["hello"], [dm.Site(1, "resid_post", 0)])


def test_values_equal_the_plain_run_at_every_layer_and_position(session: dm.Session) -> None:
    sites = [dm.Site(layer, "resid_post", position) for layer in range(3) for position in (-1, -2, -5)]
    values = session.capture(PROMPTS, sites)
    for row, prompt in enumerate(PROMPTS):
        plain = reference(session, prompt)
        for site in sites:
            if -site.position <= len(session.encode(prompt)):
                assert torch.allclose(values.at(site)[row], plain[site.layer][site.position], atol=2e-5), site


def test_points_add_up(tiny: dict[str, dm.Session]) -> None:
    for name in ("llama", "gemma2", "gpt_neox_sequential"):
        at = {p: dm.Site(1, p) for p in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")}  # type: ignore[arg-type]
        values = tiny[name].capture(PROMPTS, list(at.values()))
        get = {p: values.at(site) for p, site in at.items()}
        assert torch.allclose(get["resid_mid"], get["resid_pre"] + get["attn_out"], atol=1e-5)
        assert torch.allclose(get["resid_post"], get["resid_mid"] + get["mlp_out"], atol=1e-5)


def test_reply_tokens_are_read_after_the_prompt(tiny: dict[str, dm.Session]) -> None:
    session = tiny["llama"]
    after = session.encode_reply("first get the lamp")
    got = session.capture(PROMPTS, [dm.Site(2)], after).values[:, 0]
    for row, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            ids = torch.tensor([[*session.encode(prompt), *after]])
            plain = session.model.model(ids, output_hidden_states=True).hidden_states
        block_out = session.model.model.norm(got[row])  # the last hidden state is after the final norm
        assert torch.allclose(block_out, plain[-1][0, -1], atol=2e-5)


def test_there_is_no_layer_beyond_the_last(tiny: dict[str, dm.Session]) -> None:
    with pytest.raises(ModelError, match="layers 0 to 2"):
        tiny["llama"].capture(PROMPTS, [dm.Site(3)])


def test_nothing_to_capture_is_said(tiny: dict[str, dm.Session]) -> None:
    with pytest.raises(DataError, match="no prompts"):
        tiny["llama"].capture([], [dm.Site(0)])


def test_groups_stay_within_the_budget_and_keep_every_row() -> None:
    lengths = [5, 100, 30, 30, 7, 99, 1]
    made = groups(lengths, budget=120)
    assert sorted(i for group in made for i in group) == list(range(7))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= 120 for group in made)


def test_a_batch_that_does_not_fit_is_halved(organism: dm.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = organism.logits(PROMPTS)
    forward, sizes = organism.model.forward, []

    def small_memory(*args: object, **kwargs: Tensor) -> object:
        sizes.append(len(kwargs["input_ids"]))
        if len(kwargs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("full")
        return forward(*args, **kwargs)

    monkeypatch.setattr(organism.model, "forward", small_memory)
    assert torch.allclose(organism.logits(PROMPTS), plain, atol=1e-4)
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
