"""Where parameters lie in files: names that differ, experts one by one, axes that are tried out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig
from transformers.core_model_loading import Concatenate, MergeModulelist, Transpose, WeightConverter

import demeanor as dm
from demeanor.errors import ModelError
from demeanor.io.checkpoint import open_checkpoint
from demeanor.structure.layout import Weight
from demeanor.structure.stored_names import Piece, StoredNames, _axis_in_file
from families import SIZES, VOCAB, save_tiny
from making import PROMPTS, ablation


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mixtral")
    AutoModelForCausalLM.from_config(MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=3)).save_pretrained(folder)
    return folder


def test_experts_of_one_parameter_are_found_one_by_one_in_their_order(mixtral: Path) -> None:
    names = StoredNames(open_checkpoint(mixtral))
    pieces = names.pieces(Weight("model.layers.1.mlp.experts.down_proj", 1, (3, 48, 80)))
    assert pieces == tuple(Piece(f"model.layers.1.block_sparse_moe.experts.{expert}.w2.weight", 0) for expert in range(3))
    assert names.key("model.embed_tokens.weight") == "model.embed_tokens.weight"
    assert names.keys("model.nothing") == []


def test_a_parameter_made_of_different_tensors_is_refused(mixtral: Path) -> None:
    with pytest.raises(ModelError, match="as 6 different tensors"):
        StoredNames(open_checkpoint(mixtral)).pieces(Weight("model.layers.1.mlp.experts.gate_up_proj", 1, (3, 160, 48)))


def test_another_shape_is_not_found(mixtral: Path) -> None:
    names = StoredNames(open_checkpoint(mixtral))
    assert names.pieces(Weight("model.layers.1.mlp.experts.down_proj", 1, (3, 64, 80))) == ()
    assert names.pieces(Weight("model.embed_tokens.weight", 1, (VOCAB, 64))) == ()


@pytest.mark.parametrize("axis", [1, 2])
def test_axes_are_followed_through_a_transposition_even_of_square_experts(axis: int) -> None:
    weight = Weight("mlp.experts.down_proj", axis, (4, 48, 48))
    plain = WeightConverter("experts.*.w", "experts.down_proj", [MergeModulelist(dim=0)])
    turned = WeightConverter("experts.*.w", "experts.down_proj", [MergeModulelist(dim=0), Transpose(1, 2)])
    assert _axis_in_file(plain, weight, 4, (48, 48)) == axis - 1
    assert _axis_in_file(turned, weight, 4, (48, 48)) == 2 - axis


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axes_that_are_turned_where_sizes_differ_are_those_of_the_file(axis: int) -> None:
    weight, turned = Weight("mlp.experts.down_proj", axis, (4, 48, 80)), WeightConverter("mlp.experts.down_proj", "mlp.experts.down_proj", [Transpose(1, 2, check_dims=True)])
    assert _axis_in_file(turned, weight, 1, (4, 48, 80)) == axis
    assert _axis_in_file(turned, weight, 1, (4, 80, 48)) == (0, 2, 1)[axis]
    assert _axis_in_file(turned, weight, 2, (4, 80, 48)) is None


def test_a_joint_along_d_model_is_no_axis() -> None:
    joined = WeightConverter("experts.*.w", "experts.down_proj", [Concatenate(dim=0)])
    assert _axis_in_file(joined, Weight("w", 0, (8, 5)), 4, (2, 5)) is None
    assert _axis_in_file(joined, Weight("w", 1, (8, 5)), 4, (2, 5)) == 1


def test_files_without_the_prefix_of_the_loaded_model_are_baked_alike(tmp_path: Path) -> None:
    # As the first GPT-2 checkpoints are: "h.0.attn...", not "transformer.h.0.attn...".
    folder = save_tiny(tmp_path / "gpt2", "gpt2")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    session = dm.load(folder, device="cpu")
    control = ablation(session, rank=2)
    dm.bake(folder, control, tmp_path / "baked")
    with session.controlled(control):
        wanted = session.logits(PROMPTS)
    assert (dm.load(tmp_path / "baked", device="cpu").logits(PROMPTS) - wanted).abs().max() < 1e-4 * wanted.std()
