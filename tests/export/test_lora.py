"""A control as an adapter of PEFT's: attached by PEFT alone, it does what the control does at run time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

import demeanor as dm
from demeanor.controls import Control
from demeanor.errors import ControlError
from demeanor.export.lora import export_lora
from demeanor.runtime.adapter import Adapter
from families import FAMILIES
from making import PROMPTS, ablation, assert_logits, gate_on_length


def attached(folder: Path, adapter: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()  # nothing of ours
    return PeftModel.from_pretrained(model, adapter).eval()  # type: ignore[return-value]


def close(session: dm.Session, control: Control, model: PreTrainedModel) -> None:
    with session.controlled(control):
        wanted = session.logits(PROMPTS)
    assert_logits(model, session, wanted)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("rank", "strength"), [(1, 1.0), (2, 0.4)])
def test_attached_it_is_the_control_at_run_time(
    tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path, family: str, rank: int, strength: float
) -> None:
    control = ablation(tiny[family], rank, strength)
    written = export_lora(tiny[family], control, tmp_path / "lora")
    assert written.rank == rank
    close(tiny[family], control, attached(tiny_folders[family], tmp_path / "lora"))


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_an_adapter_and_an_edit_become_one(tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    session, rng = tiny[family], torch.Generator().manual_seed(0)
    writer = next(writer for writer in session.layout.writers if writer.layer == 1)
    module = session.model.get_submodule(writer.module)
    out, into = module.weight.shape if isinstance(module, torch.nn.Linear) else module.weight.shape[::-1]
    low_rank = {writer.module: (torch.randn(3, into, generator=rng), 0.1 * torch.randn(out, 3, generator=rng))}
    control = ablation(session, 1)
    both = replace(control, adapters=(Adapter(low_rank=low_rank, transposed=family == "gpt2", dose=0.7),))
    assert export_lora(session, both, tmp_path / "lora").rank == 4
    close(session, both, attached(tiny_folders[family], tmp_path / "lora"))


def test_biases_that_the_control_leaves_alone_stay(tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """PEFT saves the biases of every layer that is adapted."""
    session, rng = tiny["gpt2"], torch.Generator().manual_seed(0)
    low_rank = {"transformer.h.1.attn.c_attn": (torch.randn(2, 48, generator=rng), 0.1 * torch.randn(144, 2, generator=rng))}
    both = replace(ablation(session, 1), adapters=(Adapter(low_rank=low_rank, transposed=True),))
    export_lora(session, both, tmp_path / "lora")
    close(session, both, attached(tiny_folders["gpt2"], tmp_path / "lora"))


def test_a_control_that_changes_no_weight_is_told(tiny: dict[str, dm.Session], tmp_path: Path) -> None:
    control = ablation(tiny["llama"])
    nowhere = replace(control, parts=(replace(control.parts[0], scope=dm.Scope(layers=(0.0, 0.0, 0.0))),))
    with pytest.raises(ControlError, match="changes no weight"):
        export_lora(tiny["llama"], nowhere, tmp_path / "lora")
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_other_modules_is_refused(tiny: dict[str, dm.Session], tmp_path: Path) -> None:
    adapter = Adapter(low_rank={"model.layers.7.mlp.up_proj": (torch.ones(1, 48), torch.ones(80, 1))})
    with pytest.raises(ControlError, match=r"layers\.7"):
        export_lora(tiny["llama"], replace(ablation(tiny["llama"]), adapters=(adapter,)), tmp_path / "lora")


def test_merged_by_peft_it_is_the_bake(tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    control = ablation(tiny["llama"], 2)
    export_lora(tiny["llama"], control, tmp_path / "lora")
    close(tiny["llama"], control, attached(tiny_folders["llama"], tmp_path / "lora").merge_and_unload())


def test_what_weights_cannot_do_is_refused_and_nothing_is_written(tiny: dict[str, dm.Session], tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="cannot become an adapter: it is gated"):
        export_lora(tiny["llama"], ablation(tiny["llama"]).when(gate_on_length(tiny["llama"], PROMPTS, [True, False, False, False])), tmp_path / "lora")
    assert not list(tmp_path.iterdir())


def test_the_card_says_that_it_edits(tiny: dict[str, dm.Session], tmp_path: Path) -> None:
    written = export_lora(tiny["gemma2"], ablation(tiny["gemma2"]), tmp_path / "lora")
    assert "Guard rails of the original may be weaker here" in (tmp_path / "lora" / "README.md").read_text()
    assert written.tied
    assert "bake instead of merging" in str(written)
    adapter = Adapter(low_rank={"model.layers.1.mlp.up_proj": (torch.ones(1, 48), torch.ones(80, 1))})
    inside = Control(parts=(), layout=tiny["gemma2"].layout, model_name=tiny["gemma2"].name, made_from={}, adapters=(adapter,))
    assert not export_lora(tiny["gemma2"], inside, tmp_path / "inside").tied  # the embedding stays as it is


def test_the_command_says_what_was_written(demeanor, refusal_ablated: dm.Control, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    dm.save_control(refusal_ablated, tmp_path / "c.safetensors")
    said = demeanor("export", "organism", "--control", tmp_path / "c.safetensors", "--as", "lora", "-o", tmp_path / "lora")
    assert "a LoRA adapter (rank 1) on 13 weights, in PEFT's form" in said.out
    assert "nothing to export" in demeanor("export", "organism", "-o", tmp_path / "more").err
