"""The residual accounting: what it finds, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BertConfig, CTRLConfig

import demeanor as dm
from architectures.tiny import tiny_config
from demeanor.errors import AccountingError
from demeanor.io.tensors import decoded
from demeanor.structure import proof, writers
from demeanor.structure.account import account
from demeanor.structure.accounting import told
from demeanor.structure.layout import Layout
from demeanor.structure.proof import prove
from families import FAMILIES, tiny_model

LLAMA = ("self_attn.o_proj", "mlp.down_proj")
NEOX = ("attention.dense", "mlp.dense_4h_to_h")
FALCON = ("self_attention.dense", "mlp.dense_4h_to_h")
EXPERTS = ("self_attn.o_proj", "mlp")
EXPECTED = dict.fromkeys(FAMILIES, LLAMA) | {
    "gpt_neox": NEOX, "gpt_neox_sequential": NEOX, "falcon": FALCON, "falcon_new": FALCON, "falcon_sequential": FALCON,
    "gpt2": ("attn.c_proj", "mlp.c_proj"), "qwen3_moe": EXPERTS, "gpt_oss": EXPERTS,
}  # fmt: skip
EMBEDDINGS = {"gpt2": 2}  # tokens and positions


@pytest.mark.parametrize("family", FAMILIES)
def test_every_writer_is_found(tiny: dict[str, dm.Session], family: str) -> None:
    layout = tiny[family].layout
    writers = [w.role for w in layout.writers if w.layer >= 0]
    assert sorted(writers) == ["attn"] * 3 + ["mlp"] * 3
    assert [w.role for w in layout.writers if w.layer < 0] == ["embed"] * EMBEDDINGS.get(family, 1)
    for layer, block in enumerate(layout.blocks):
        names = tuple(writer.module for role in ("attn", "mlp") for writer in layout.writers_of(layer, role))  # type: ignore[arg-type]
        assert names == tuple(f"{block}.{name}" for name in EXPECTED[family])
    assert layout.worst_residual < 1e-9


def test_biases_post_norms_and_ties_are_described(tiny: dict[str, dm.Session]) -> None:
    (neox,) = tiny["gpt_neox"].layout.writers_of(1, "attn")
    assert [w.name.rsplit(".", 1)[1] for w in neox.weights] == ["weight", "bias"]
    (gemma,) = tiny["gemma2"].layout.writers_of(1, "mlp")
    assert gemma.post_norm is not None
    assert (gemma.post_norm.weight, gemma.post_norm.offset, gemma.post_norm.centred) == (
        "model.layers.1.post_feedforward_layernorm.weight", 1.0, False,
    )  # fmt: skip
    assert tiny["gemma2"].layout.tied == ("model.embed_tokens.weight", "lm_head.weight")
    assert tiny["llama"].layout.tied is None


def test_axes_of_square_transposed_and_expert_weights_are_found_by_what_they_do(tiny: dict[str, dm.Session]) -> None:
    def axes(family: str, role: str) -> list[tuple[int, tuple[int, ...]]]:
        (writer,) = tiny[family].layout.writers_of(1, role)  # type: ignore[arg-type]
        return [(weight.axis, weight.shape) for weight in writer.weights]

    assert axes("gpt2", "mlp") == [(1, (48, 48)), (0, (48,))]  # Conv1D, and square
    assert axes("llama", "attn") == [(0, (48, 48))]
    assert axes("qwen3_moe", "mlp") == [(1, (4, 48, 48))]  # every expert in one tensor, and square
    assert axes("gpt_oss", "mlp") == [(2, (4, 80, 48)), (1, (4, 48))]  # the other way round, with a bias per expert


def test_multipliers_are_measured(tiny: dict[str, dm.Session]) -> None:
    # Gemma 2 multiplies its embeddings by sqrt(d_model), inside the embedding module or after it.
    session = tiny["gemma2"]
    site = dm.Site(0, "embed")
    before = session.capture(["hello"], [site, dm.Site(0, "resid_pre")])
    assert torch.allclose(before.at(site), before.at(dm.Site(0, "resid_pre")), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_hash_is_of_structure_not_of_weights_or_dtype(tiny: dict[str, dm.Session], family: str) -> None:
    layout = tiny[family].layout
    assert prove(tiny_model(family, seed=5)).hash == layout.hash
    assert prove(tiny_model(family, seed=5, dtype=torch.bfloat16)).hash == layout.hash
    others = {other: session.layout.hash for other, session in tiny.items() if other != family}
    same = {"gpt_neox", "gpt_neox_sequential"}  # parallel or not, the same modules write
    assert [other for other, found in others.items() if found == layout.hash] == sorted(same - {family} if family in same else ())


def test_layout_survives_json(session: dm.Session) -> None:
    again = decoded(Layout, json.dumps(session.layout.to_json()), Path("layout"))
    assert again == session.layout
    assert again.hash == session.layout.hash


class _PerChannel(nn.Module):
    """A block whose output is the inner block's, scaled per channel: no scalar accounts for it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.scale = block, nn.Parameter(torch.linspace(0.5, 1.5, 48))
        self.attention_type = getattr(block, "attention_type", None)

    def forward(self, hidden_states: Tensor, **kwargs: object) -> Tensor:
        out: Tensor = self.block(hidden_states, **kwargs)
        return out * self.scale


class _Hidden(nn.Linear):
    """A writer that adds a constant no parameter holds."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.arange(48).to(x) / 48


def test_a_block_that_scales_the_stream_per_channel_is_refused() -> None:
    model = tiny_model("llama")
    model.model.layers[1] = _PerChannel(model.model.layers[1])
    with pytest.raises(AccountingError, match=r"model\.layers\.1"):
        prove(model)


def test_a_writer_with_something_no_weight_explains_is_refused() -> None:
    model = tiny_model("llama")
    model.model.layers[2].mlp.down_proj.__class__ = _Hidden
    with pytest.raises(AccountingError, match=r"layers\.2.*not all of its weights"):
        prove(model)


def test_a_stream_changed_between_blocks_is_refused() -> None:
    model = tiny_model("llama")
    model.model.layers[1].register_forward_pre_hook(lambda m, args: (args[0] * 1.5, *args[1:]))
    with pytest.raises(AccountingError, match="between"):
        prove(model)


class _Times(nn.Module):
    """An MLP whose output comes in several times, or not at all; how often is a whole number, as a layer's own number is."""

    def __init__(self, mlp: nn.Module, times: int) -> None:
        super().__init__()
        self.mlp, self.times = mlp, times

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(x) * self.times
        return out


class _Shifted(nn.Linear):
    """A writer that adds a constant no parameter holds, in some blocks."""

    shift: int

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shift * torch.arange(48).to(x) / 48


def test_blocks_that_only_look_alike_are_told_apart() -> None:
    model = tiny_model("llama")
    for layer, times in zip(model.model.layers, (1, 2, 0)):
        layer.mlp = _Times(layer.mlp, times)
    layout = prove(model)
    assert [[writer.scale for writer in layout.writers_of(layer, "mlp")] for layer in range(3)] == [[1], [2], []]
    assert [len(layout.writers_of(layer, "attn")) for layer in range(3)] == [1, 1, 1]


def test_a_fault_of_one_of_many_blocks_that_look_alike_is_found() -> None:
    model = tiny_model("llama")
    for layer, shift in zip(model.model.layers, (0, 1, 0)):
        layer.mlp.down_proj.__class__, layer.mlp.down_proj.shift = _Shifted, shift
    with pytest.raises(AccountingError, match=r"layers\.1.*not all of its weights"):
        prove(model)


class _Experts(nn.Module):
    """Experts that are modules of their own, of which a block uses the first `used`."""

    def __init__(self, used: int) -> None:
        super().__init__()
        self.experts, self.used = nn.ModuleList(nn.Linear(48, 48, bias=False) for _ in range(2)), used

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.experts[0](x)
        for expert in list(self.experts)[1 : self.used]:
            out = out + expert(x)
        return out


def test_an_expert_that_no_token_reaches_is_no_expert_that_was_checked() -> None:
    model = tiny_model("llama")
    for layer, used in zip(model.model.layers, (2, 2, 1)):
        layer.mlp = _Experts(used)
    with pytest.raises(AccountingError, match=r"layers\.2\.mlp\.experts\.1\.weight was reached by no token"):
        prove(model)


def test_blocks_that_are_built_alike_are_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    monkeypatch.setattr(proof, "account", lambda replay, layer: searched.append(layer) or account(replay, layer))
    prove(tiny_model("llama"))
    assert searched == [0]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "gpt_oss", "qwen3_moe"])
def test_what_is_tried_out_is_what_would_be_found(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    model = tiny_model(family)
    tried = prove(model)
    monkeypatch.setattr(proof, "like", lambda *_: None)
    looked_for = prove(model)
    assert tried.hash == looked_for.hash
    assert [writer.scale for writer in tried.writers] == pytest.approx([writer.scale for writer in looked_for.writers], rel=1e-6)


SMALL = {"vocab_size": 99, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
REFUSED = {
    "a norm (output.LayerNorm) sits on the stream": BertConfig(**SMALL, intermediate_size=64, is_decoder=True),
    "lies in none of its weights": CTRLConfig(vocab_size=99, n_embd=32, dff=64, n_layer=2, n_head=4),
    "runs 2 times in one pass (layers in a loop)": tiny_config("dory"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_families_that_cannot_be_proven_are_refused_with_the_fact_in_one_sentence(why: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(REFUSED[why]).eval()
    with pytest.raises(AccountingError) as caught:
        prove(model)
    assert why in str(caught.value)
    assert str(caught.value).endswith("this model cannot be edited yet.")


@pytest.mark.parametrize("family", ["gemma2", "qwen3_moe"])
def test_gradients_that_are_taken_one_by_one_find_the_same(family: str, tiny: dict[str, dm.Session], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "AT_ONCE", 0)
    assert prove(tiny[family].model).hash == tiny[family].layout.hash


@given(st.floats(0, 1e-5), st.floats(0, 1e-15))
def test_a_residual_is_told_as_every_process_measures_it(residual: float, noise: float) -> None:
    """No smaller than it is, in steps that are far larger than what differs from one process to the next."""
    assert residual * (1 - 1e-12) <= told(residual) <= residual + 1.01e-12
    assert told(residual + noise) - told(residual) < 1.01e-12
    assert told(0.0) == 0
    assert told(3.1e-15) == told(6.9e-15) == 1e-12
