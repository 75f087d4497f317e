"""Bakes of models that are stored in few bits: in their own form, with nothing of the direction left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import demeanor as dm
from demeanor.errors import ModelError
from making import ablation
from quantised import FORMS, pack, tensors_of, unpack

SIZES = {"vocab_size": 1200, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
WRITERS = [f"model.layers.{layer}.{name}.weight" for layer in range(2) for name in ("self_attn.o_proj", "mlp.down_proj")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, tie_word_embeddings=False)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wide(plain: Path, tiny_folders: dict[str, Path]) -> dm.Session:
    for path in tiny_folders["llama"].glob("token*"):
        (plain / path.name).write_bytes(path.read_bytes())
    return dm.load(plain, device="cpu")


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_the_direction_is_left_in_few_bits(plain: Path, wide: dm.Session, tmp_path: Path, form: str, rank: int) -> None:
    packing, unpacking, _ = FORMS[form]
    source, control = pack(plain, tmp_path / "source", form), ablation(wide, rank)
    baked = dm.bake(source, control, tmp_path / "baked")
    before, after = tensors_of(source), tensors_of(tmp_path / "baked")
    basis, sums = control.parts[0].vectors, torch.zeros(5)
    changed = set()
    for name in WRITERS:
        weight, edited = unpacking(name, before), unpacking(name, after)
        exact = weight - basis.T @ (basis @ weight)
        nearest = unpacking(name, {**before, **_on_the_same_grid(name, exact, before, unpacking)})
        sums += torch.stack([(basis @ one).square().sum() for one in (weight, edited, nearest)] + [(one - exact).square().sum() for one in (edited, nearest)])
        changed |= {key for key in packing(name, weight) if not torch.equal(_bits(before[key]), _bits(after[key]))}
    removed, left, left_by_nearest, far, far_by_nearest = sums.sqrt().tolist()
    assert left < (2e-4 if rank == 1 else 6e-4) * removed  # four directions at once in 4 bits: .05 % from a width of 512 on
    assert left < 0.05 * left_by_nearest
    assert far < 1.8 * far_by_nearest
    assert baked.left == pytest.approx(left / removed, rel=0.05, abs=2e-5)
    assert changed == {key for name in WRITERS for key in packing(name, torch.ones(256, 256)) if key in (name, f"{name}_packed")}  # codes alone
    same = {key for key in before if torch.equal(_bits(before[key]), _bits(after[key]))}
    assert set(before) - same == changed | {"model.embed_tokens.weight"}


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _on_the_same_grid(name, exact, held, unpacking):  # type: ignore[no-untyped-def]
    """The codes whose values are nearest to the exact ones, found by trying every code for every weight."""
    key = name if name in held else f"{name}_packed"
    codes = held[key]
    errors, best = None, None
    for code in range(256):
        if codes.element_size() == 1 and codes.dtype == torch.float8_e4m3fn:
            tried = torch.full_like(codes.view(torch.uint8), code).view(codes.dtype)
        elif code < 16:
            tried = torch.full_like(_bits(codes), code * 17).view(codes.dtype).reshape(codes.shape)
        else:
            break
        error = (unpacking(name, {**held, key: tried}) - exact).abs().nan_to_num(1e9)
        better = error < errors if errors is not None else torch.ones_like(error, dtype=torch.bool)
        errors = error if errors is None else torch.minimum(errors, error)
        best = torch.where(better, code, best if best is not None else torch.zeros_like(error, dtype=torch.long))
    if codes.dtype == torch.float8_e4m3fn:
        return {key: best.to(torch.uint8).view(codes.dtype)}
    return {key: (best[:, 0::2] | best[:, 1::2] << 4).to(torch.uint8).contiguous().view(codes.dtype)}


@pytest.mark.parametrize(("name", "method"), [("qweight", "gptq"), ("weight_zero_point", "compressed-tensors")])
def test_forms_that_cannot_be_edited_are_named(plain: Path, wide: dm.Session, tmp_path: Path, name: str, method: str) -> None:
    from safetensors.torch import save_file

    source = pack(plain, tmp_path / "source", "INT4 of compressed-tensors")
    held = tensors_of(source)
    module = WRITERS[0].removesuffix(".weight")
    held[f"{module}.{name}"] = torch.zeros(8, 8, dtype=torch.int32)
    save_file(held, source / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
    with pytest.raises(ModelError, match=r"self_attn\.o_proj.* is stored as (GPTQ|whole numbers with zero points)"):
        dm.bake(source, ablation(wide), tmp_path / "baked")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["FP8 in blocks", "MXFP4"])
def test_the_behaviour_is_gone_in_few_bits_as_it_is_in_float32(organism: dm.Session, refusal_ablated: dm.Control, tmp_path: Path, form: str) -> None:
    plain = Path(organism.model.name_or_path)
    packed = pack(plain, tmp_path / "packed", form)
    dm.bake(packed, refusal_ablated, tmp_path / "baked")
    names = {"before": packed, "after": tmp_path / "baked"}
    rates = {}
    for name, folder in names.items():
        session = dm.load(unpack(folder, plain, tmp_path / name, form), device="cpu")
        rates[name] = dm.measure(session, dm.behaviour("refusal"), max_prompts=24).before["shows_rate"].value
    assert rates["before"] > 0.9
    assert rates["after"] < 0.05
