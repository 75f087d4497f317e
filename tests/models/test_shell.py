"""Modules without weights, filled from the files: this pins the parts of transformers that are no public interface."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DiffLlamaConfig

import demeanor as dm
from demeanor.errors import ModelError
from demeanor.io.checkpoint import open_checkpoint
from demeanor.models.shell import META, Shell
from families import FAMILIES


def shell_of(folder: Path, dtype: torch.dtype | None = None) -> Shell:
    return Shell(folder.name, open_checkpoint(folder), dtype, torch.device("cpu"))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_is_what_the_framework_loads(family: str, tiny_folders: Mapping[str, Path], tiny: Mapping[str, dm.Session]) -> None:
    shell, model = shell_of(tiny_folders[family]), tiny[family].model
    assert all(parameter.device == META for parameter in shell.model.parameters())
    assert {name for name, buffer in shell.model.named_buffers() if buffer.device == META} <= set(shell.model.state_dict())
    shell.read("")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        assert torch.equal(getattr(shell.model.get_submodule(owner), leaf), tensor), name


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_a_block_is_read_once_and_goes_again(family: str, tiny_folders: Mapping[str, Path]) -> None:
    shell, name = shell_of(tiny_folders[family]), "model.layers.1"
    with shell.reading(name) as block:
        size = sum(parameter.numel() * 4 for parameter in block.parameters())
        assert shell.bytes_read == size == shell.size(name)
        assert all(parameter.device != META for parameter in block.parameters())
    assert all(parameter.device == META for parameter in shell.model.parameters())


def test_a_parameter_that_its_module_makes_up_is_read_too(tiny_folders: Mapping[str, Path], tmp_path: Path) -> None:
    config = DiffLlamaConfig(vocab_size=1200, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    model = AutoModelForCausalLM.from_config(config)  # draws some of its weights whatever device it is told
    model.save_pretrained(tmp_path)
    shell = shell_of(tmp_path)
    with shell.reading("model.layers.0"):
        for name, parameter in model.model.layers[0].named_parameters():
            assert torch.equal(shell.model.get_parameter(f"model.layers.0.{name}"), parameter), name


def test_a_tied_head_is_the_embedding(tiny_folders: Mapping[str, Path]) -> None:
    shell = shell_of(tiny_folders["gemma2"])
    assert shell.tied == ("model.embed_tokens.weight", "lm_head.weight")
    shell.read("lm_head")
    shell.read("model.embed_tokens")
    assert shell.model.lm_head.weight is shell.model.model.embed_tokens.weight
    assert shell.bytes_read == shell.size("lm_head")


def test_another_dtype_is_converted_to_as_it_is_read(tiny_folders: Mapping[str, Path]) -> None:
    shell = shell_of(tiny_folders["gemma2"], torch.bfloat16)
    whole = shell_of(tiny_folders["gemma2"]).tensor("model.layers.0.mlp.down_proj.weight")
    assert torch.equal(shell.tensor("model.layers.0.mlp.down_proj.weight"), whole.bfloat16())
    assert shell.model.get_parameter("model.layers.0.mlp.down_proj.weight").device == META


def test_files_without_a_tensor_are_refused_before_anything_runs(tiny_folders: Mapping[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in tiny_folders["llama"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    held = load_file(tmp_path / "model.safetensors")
    del held["model.layers.2.mlp.down_proj.weight"]
    save_file(held, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"has no tensor model\.layers\.2\.mlp\.down_proj\.weight"):
        shell_of(tmp_path)
