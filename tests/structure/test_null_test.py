"""Families that no accounting of scalars explains, one for every cause: proven by the null test, baked as they run, read in any batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

import demeanor as dm
from architectures.examine import examine
from architectures.tiny import tiny_config, tiny_model
from demeanor.errors import AccountingError, ControlError, ModelError
from demeanor.models.loading import resolve
from demeanor.structure.proof import prove
from families import tiny_model as tiny_family
from making import a_direction, ablation

CAUSES = {
    "bloom": "a norm behind the embedding",
    "opt": "positions with an offset, and a head that calls what lies inside the model without it",
    "axk1": "several writers before one norm, and experts",
    "recurrent_gemma": "pads that are read",
    "zamba": "a block that several layers share, which untying the head unties",
    "xlm-roberta-xl": "positions that are counted in another way, and a tied bias",
}
STREAMS = {"deepseek_v4": "copies of the stream that are mixed token by token"}
PROMPTS = ["hello", "what is 3 plus 4 ?"]


def small(model_type: str) -> Any:
    return tiny_config(model_type, **({"num_hidden_layers": 2} if model_type == "bloom" else {}))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [*CAUSES, *STREAMS])
def test_a_family_of_every_cause_is_right_in_everything(model_type: str) -> None:
    examined = examine(model_type)
    assert examined.right, examined.reason


def loaded(model_type: str, folder: Path, **changes: Any) -> dm.Session:
    tiny_model(tiny_config(model_type, **changes)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve("organism")[0]).save_pretrained(folder)
    return dm.load(folder, device="cpu")


class _Gated(nn.Module):
    """A block whose parts come in through a gate of every token: no scalar accounts for it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.gate = block, nn.Linear(48, 1)
        self.attention_type = getattr(block, "attention_type", None)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        out: Tensor = self.block(hidden_states, **kwargs)
        return hidden_states + self.gate(hidden_states).sigmoid() * (out - hidden_states)


def test_parts_behind_a_gate_of_every_token_are_found_and_told_as_no_sum() -> None:
    model = tiny_family("llama")
    model.model.layers[1] = _Gated(model.model.layers[1])
    layout = prove(model)
    assert [writer.module for writer in layout.writers if writer.layer == 1] == [
        "model.layers.1.block.self_attn.o_proj", "model.layers.1.block.mlp.down_proj",
    ]  # fmt: skip
    assert [layout.alpha(layer) is None for layer in range(3)] == [False, True, False]


def test_a_writer_of_the_block_that_hides_beside_its_modules_is_found_out() -> None:
    class Added(_Gated):
        def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
            return super().forward(hidden_states, **kwargs) + torch.arange(48).to(hidden_states) / 48

    model = tiny_family("llama")
    model.model.layers[1] = Added(model.model.layers[1])
    with pytest.raises(AccountingError, match=r"model\.layers\.1"):
        prove(model)


def test_alpha_and_every_writer_of_a_part_are_told(tmp_path: Path) -> None:
    # Falcon-H1 has two writers that mix tokens; both make attn_out.
    session = loaded("falcon_h1", tmp_path / "model", num_hidden_layers=2)
    assert [len(session.layout.writers_of(0, role)) for role in ("attn", "mlp")] == [2, 1]  # type: ignore[arg-type]
    points = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    sites = [dm.Site(1, point) for point in points]  # type: ignore[arg-type]
    pre, attn, mid, mlp, post = session.capture(PROMPTS, sites).values.unbind(1)
    alpha = session.layout.alpha(1)
    assert alpha is not None
    assert torch.allclose(alpha * pre + attn, mid, atol=1e-5)
    assert torch.allclose(mid + mlp, post, atol=1e-5)


@pytest.mark.slow
def test_copies_of_the_stream_have_a_mean_and_no_single_place(tmp_path: Path) -> None:
    session = loaded("deepseek_v4", tmp_path / "model")
    assert session.layout.copies == 4
    values = session.capture(PROMPTS, [dm.Site(1)]).values
    assert values.shape == (2, 1, session.layout.d_model)
    with pytest.raises(ModelError, match="mixed token by token"):
        session.capture(PROMPTS, [dm.Site(1, "attn_out")])
    site = dm.Site(1)
    with pytest.raises(ControlError, match="4 copies"), session.controlled(dm.add(a_direction(session, site), dose=1)):
        pass


def test_run_time_edits_act_where_the_head_skips_the_model_without_it(tmp_path: Path) -> None:
    session = loaded("opt", tmp_path / "model", num_hidden_layers=1)
    ids = torch.tensor([session.encode("hello")])
    with torch.no_grad():
        before = session.model(input_ids=ids).logits
        with session.controlled(ablation(session)):
            assert not torch.allclose(session.model(input_ids=ids).logits, before, atol=1e-3)
        assert torch.equal(session.model(input_ids=ids).logits, before)


def test_rows_are_padded_only_where_pads_are_not_read(tmp_path: Path) -> None:
    session = loaded("recurrent_gemma", tmp_path / "model", num_hidden_layers=3)
    assert session.layout.even_rows
    together = session.logits(PROMPTS)
    with torch.no_grad():
        for row, prompt in enumerate(PROMPTS):
            alone = session.model(input_ids=torch.tensor([session.encode(prompt)])).logits[0, -1]
            assert torch.allclose(together[row], alone, atol=1e-4)
