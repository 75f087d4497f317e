"""What is written into files equals what the control does at run time, and nothing else changes."""

from __future__ import annotations

import importlib
import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

import demeanor as dm
from demeanor.controls import Control, Part
from demeanor.errors import ControlError, DataError, ModelError
from families import FAMILIES, SIZES, save_tiny
from making import PROMPTS, a_direction, ablation, assert_gone, assert_logits, basis_of, gate_on_length

patch = importlib.import_module("demeanor.export.patch")


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


NEOX = r"(embed_in|attention\.dense|dense_4h_to_h)\.(weight|bias)$"
FALCON = r"(word_embeddings|self_attention\.dense|dense_4h_to_h)\.(weight|bias)$"
# Names as they stand in the files, where they differ from Llama's: experts one by one, prefixes, biases.
WRITERS_IN_FILES = {
    "gpt_neox": NEOX, "gpt_neox_sequential": NEOX, "falcon": FALCON, "falcon_new": FALCON, "falcon_sequential": FALCON,
    "gpt2": r"(wte|wpe|c_proj)\.(weight|bias)$",
    "qwen3_moe": r"(embed_tokens|o_proj|experts\.[0-3]\.down_proj)\.weight$",
    "gpt_oss": r"(embed_tokens\.weight|o_proj\.(weight|bias)|experts\.down_proj(_bias)?)$",
    "gemma3_with_vision": r"^language_model.*(embed_tokens|o_proj|down_proj)\.weight$",
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("rank", "strength"), [(1, 1.0), (3, 1.0), (2, 0.4)])
def test_baked_equals_run_time(
    tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path, family: str, rank: int, strength: float
) -> None:
    session, control = tiny[family], ablation(tiny[family], rank, strength)
    dm.bake(tiny_folders[family], control, tmp_path / "baked")
    with session.controlled(control):
        wanted = session.logits(PROMPTS)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "baked", dtype=torch.float32).eval()  # nothing of ours
    assert_logits(plain, session, wanted)
    again = dm.load(tmp_path / "baked", device="cpu")
    assert again.layout.d_model == session.layout.d_model
    if strength == 1.0:
        assert_gone(again, control)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("rank", "strength"), [(1, 1.0), (2, 0.4)])
def test_columns_keep_their_length_where_that_is_asked_for(
    tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path, family: str, rank: int, strength: float
) -> None:
    """Every column is that of a plain bake, scaled to the length that it had; of what is ablated wholly nothing is in the stream."""
    control = ablation(tiny[family], rank, strength)
    for folder, keep_norms in (("plain", False), ("kept", True)):
        dm.bake(tiny_folders[family], control, tmp_path / folder, keep_norms=keep_norms)
    was, plain, kept = all_tensors(tiny_folders[family]), all_tensors(tmp_path / "plain"), all_tensors(tmp_path / "kept")
    edited = [name for name in was if not torch.equal(was[name], plain[name])]
    assert edited
    for name in edited:
        if was[name].dim() == 1 or name.endswith("_proj_bias"):
            continue  # a bias says the same to every input
        lengths = [(tensors[name].norm(dim=axis, keepdim=True)) for axis in (-2, -1) for tensors in (was, plain)]
        wanted = [plain[name] * before / after for before, after in (lengths[:2], lengths[2:])]
        assert any(torch.allclose(kept[name], one, rtol=1e-4, atol=1e-6) for one in wanted), name
    if strength == 1.0:
        assert_gone(dm.load(tmp_path / "kept", device="cpu"), control)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_writers_change_and_the_source_does_not(
    tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    source = {path.name: path.read_bytes() for path in tiny_folders[family].iterdir()}
    baked = dm.bake(tiny_folders[family], ablation(tiny[family]), tmp_path / "baked")
    assert {path.name: path.read_bytes() for path in tiny_folders[family].iterdir()} == source
    before, after = all_tensors(tiny_folders[family]), all_tensors(tmp_path / "baked")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        name for name in before if re.search(WRITERS_IN_FILES.get(family, r"(embed_tokens|o_proj|down_proj)\.weight$"), name)
    }
    assert baked.edited == len(changed)
    assert set(after) - set(before) == ({"lm_head.weight"} if tiny[family].layout.tied else set())


def test_a_tied_head_keeps_the_unedited_embedding(tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    dm.bake(tiny_folders["gemma2"], ablation(tiny["gemma2"]), tmp_path / "baked")
    embedding = load_file(tiny_folders["gemma2"] / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(all_tensors(tmp_path / "baked")["lm_head.weight"], embedding)
    assert json.loads((tmp_path / "baked" / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_shards_are_patched_one_by_one(tmp_path: Path, family: str) -> None:
    folder = save_tiny(tmp_path / "source", family, shard="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    session = dm.load(folder, device="cpu")
    control = ablation(session, rank=2)
    dm.bake(folder, control, tmp_path / "baked")
    with session.controlled(control):
        wanted = session.logits(PROMPTS)
    assert (dm.load(tmp_path / "baked", device="cpu").logits(PROMPTS) - wanted).abs().max() < 1e-4 * wanted.std()


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_and_keeps_the_edit(tmp_path: Path, dtype: torch.dtype, rank: int) -> None:
    """Nothing of r is left, and every value is one of the two next to the exact one, most of them the nearest."""
    folder = save_tiny(tmp_path / "source", "llama", dtype=dtype)
    control = ablation(dm.load(folder, device="cpu", dtype="float32"), rank)
    baked = dm.bake(folder, control, tmp_path / "baked")
    before, after = all_tensors(folder), all_tensors(tmp_path / "baked")
    basis, put_back, removed = control.parts[0].vectors, 0.0, 0.0
    for name in ("model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"):
        stored, weight = before[name].float(), after[name].float()
        stored, weight = (stored.T, weight.T) if "embed" in name else (stored, weight)  # [d_model, ...]
        exact = stored - basis.T @ (basis @ stored)
        nearest = exact.to(dtype).float()
        assert after[name].dtype == dtype
        assert (basis @ weight).norm() < min(5e-4 * (basis @ stored).norm(), 0.2 * (basis @ nearest).norm())
        assert (weight - exact).norm() < 1.8 * (nearest - exact).norm()
        put_back += float((basis @ weight).square().sum())
        removed += float((basis @ stored).square().sum())
    assert baked.left is not None
    assert baked.left < 5e-4
    assert f"Left of r after rounding: {baked.left:.4%}" in str(baked)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [1 << 9, 1 << 21])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_blocks_of_rows_give_what_one_product_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, blocks: int) -> None:
    monkeypatch.setattr(patch, "BLOCK_BYTES", blocks)
    folder = save_tiny(tmp_path / "source", "qwen3_moe", dtype=dtype)
    control = ablation(dm.load(folder, device="cpu", dtype="float32"), 2, 0.7)
    dm.bake(folder, control, tmp_path / "baked")
    before, after = all_tensors(folder), all_tensors(tmp_path / "baked")
    project = torch.eye(48, dtype=torch.float64) - 0.7 * (control.parts[0].vectors.T @ control.parts[0].vectors).double()
    for name in ("model.layers.1.self_attn.o_proj.weight", "model.layers.0.mlp.experts.2.down_proj.weight"):
        assert torch.allclose(after[name].double(), project @ before[name].double(), atol=1e-6 if dtype != torch.bfloat16 else 2e-3)
    embedding = "model.embed_tokens.weight"
    assert torch.allclose(after[embedding].double(), before[embedding].double() @ project, atol=1e-6 if dtype != torch.bfloat16 else 2e-3)


def test_the_card_says_first_that_the_model_was_edited(tiny: dict[str, dm.Session], tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "source", "llama")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# A model\n")
    dm.bake(folder, ablation(tiny["llama"]), tmp_path / "baked")
    card = (tmp_path / "baked" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n---\n")
    assert card.index("Edited model") < card.index("# A model")


def test_other_weight_formats_are_left_out_and_named(tiny: dict[str, dm.Session], tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "source", "llama")
    (folder / "pytorch_model.bin").write_bytes(b"unedited weights")
    baked = dm.bake(folder, ablation(tiny["llama"]), tmp_path / "baked")
    assert baked.left_out == ("pytorch_model.bin",)
    assert not (tmp_path / "baked" / "pytorch_model.bin").exists()


def test_what_weights_cannot_do_is_refused(tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    session = tiny["llama"]
    gated = ablation(session).when(gate_on_length(session, PROMPTS, [True, False, True, False]))
    with pytest.raises(ControlError, match="gated per request"):
        dm.bake(tiny_folders["llama"], gated, tmp_path / "baked")
    with pytest.raises(ControlError, match="run time"):
        dm.bake(tiny_folders["llama"], dm.add(a_direction(session, dm.Site(1)), 1.0), tmp_path / "baked")
    with pytest.raises(ControlError, match="structure"):
        dm.bake(tiny_folders["gemma2"], ablation(session), tmp_path / "baked")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_parent_folder_is_made(tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    dm.bake(tiny_folders["llama"], ablation(tiny["llama"]), tmp_path / "deep" / "er" / "baked")
    assert (tmp_path / "deep" / "er" / "baked" / "config.json").is_file()


def save_other(folder: Path, **changed: int) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**{**SIZES, "num_key_value_heads": 2, **changed})).save_pretrained(folder)
    return folder


def test_a_control_for_another_size_names_the_tensor(tiny: dict[str, dm.Session], tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=r"structure .* no tensor|structure .* it is"):
        dm.bake(save_other(tmp_path / "wide", hidden_size=64), ablation(tiny["llama"]), tmp_path / "baked")
    with pytest.raises(ControlError, match=r"of 3 layers, and .* has 2"):
        dm.bake(save_other(tmp_path / "flat", num_hidden_layers=2), ablation(tiny["llama"]), tmp_path / "baked")
    assert not (tmp_path / "baked").exists()


def test_an_existing_target_is_kept(tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="exists already"):
        dm.bake(tiny_folders["llama"], ablation(tiny["llama"]), tmp_path / "mine")


@pytest.mark.parametrize("cut", [4, 100, -1])
def test_a_truncated_file_is_named_and_nothing_is_left(tiny: dict[str, dm.Session], tmp_path: Path, cut: int) -> None:
    folder = save_tiny(tmp_path / "source", "llama")
    shard = folder / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:cut])
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        dm.bake(folder, ablation(tiny["llama"]), tmp_path / "baked")
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        dm.load(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_failure_while_patching_leaves_nothing(
    tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DataError, match="No space left"):
        dm.bake(tiny_folders["llama"], ablation(tiny["llama"]), tmp_path / "baked")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "source", "llama", shard="60KB")
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ModelError, match=gone.name):
        dm.load(folder)


def test_packed_weights_of_an_unknown_form_are_refused_by_name(tiny: dict[str, dm.Session], tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "source", "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.o_proj.weight"] = torch.zeros(48, 48, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(ModelError, match=r"o_proj\.weight .* as bitsandbytes, which cannot be edited exactly; use an unquantised copy"):
        dm.bake(folder, ablation(tiny["llama"]), tmp_path / "baked")


OTHERS = {
    "scale": lambda d, o: dm.scale(d, 2.5),
    "rotate": lambda d, o: dm.rotate(d, o, 70),
    "weighed by layer": lambda d, o: dm.rotate(d, o, -120, dm.Scope(layers=(1.0, 0.5, 0.0), role="mlp")),
    "in turn": lambda d, o: dm.scale(d, 0.3).then(dm.rotate(o, d, 30)).then(dm.ablate(d)),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", OTHERS)
def test_whatever_is_linear_at_the_writers_is_baked_as_it_runs(
    tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path, family: str, kind: str
) -> None:
    session = tiny[family]
    control = OTHERS[kind](a_direction(session, dm.Site(1), seed=1), a_direction(session, dm.Site(1), seed=2))
    assert control.bakeable() is None
    dm.bake(tiny_folders[family], control, tmp_path / "baked")
    with session.controlled(control):
        wanted = session.logits(PROMPTS)
    assert (wanted - session.logits(PROMPTS)).abs().max() > 1e-2 * wanted.std()
    assert (dm.load(tmp_path / "baked", device="cpu").logits(PROMPTS) - wanted).abs().max() < 1e-4 * wanted.std()


def test_an_edit_that_reads_apart_is_baked_where_no_norm_is_behind_the_writers(
    tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    session = tiny["llama"]
    part = Part(
        kind="ablate",
        vectors=basis_of(session, 1, 1),
        dose=1.0,
        scope=dm.Scope(),
        read=2 * basis_of(session, 1, 1) + basis_of(session, 1, 2),
    )
    control = Control(parts=(part,), layout=session.layout, model_name=session.name)
    dm.bake(tiny_folders["llama"], control, tmp_path / "baked")
    with session.controlled(control):
        wanted = session.logits(PROMPTS)
    assert (dm.load(tmp_path / "baked", device="cpu").logits(PROMPTS) - wanted).abs().max() < 1e-4 * wanted.std()


@pytest.mark.parametrize("scope", [dm.Scope(tokens="reply"), dm.Scope(site=dm.Site(1))])
def test_some_tokens_or_one_site_cannot_be_baked(
    tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path, scope: dm.Scope
) -> None:
    with pytest.raises(ControlError, match=r"scale at .* is done at run time"):
        dm.bake(tiny_folders["llama"], dm.scale(a_direction(tiny["llama"], dm.Site(1)), 2.0, scope), tmp_path / "baked")
