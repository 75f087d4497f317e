"""Files for llama.cpp made of a GGUF file: read by other code than ours they do what the control does at run time, and hold the rest as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize, quantize
from torch import Tensor

import demeanor as dm
from demeanor.controls import Control
from demeanor.errors import ControlError, ModelError
from demeanor.export.gguf_blocks import packed_q8_0
from demeanor.runtime.adapter import Adapter
from making import PROMPTS, ablation, gate_on_length
from tiny_gguf import tiny_gpt2, tiny_llama, write_gguf

MODELS = {"llama": tiny_llama, "tied": lambda: tiny_llama(tied=True), "gpt2": tiny_gpt2}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("source")
    return {name: write_gguf(folder / f"{name}.gguf", make(), "gpt2" if name == "gpt2" else "llama") for name, make in MODELS.items()}


@pytest.fixture(scope="module")
def sessions(files: dict[str, Path]) -> dict[str, dm.Session]:
    return {name: dm.load(path, device="cpu") for name, path in files.items()}


def under(session: dm.Session, control: Control) -> Tensor:
    with session.controlled(control):
        return session.logits(PROMPTS)


def header(reader: GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("edited_as", "bound"), [("f32", 1e-4), ("f16", 2e-2)])
def test_the_whole_model_does_what_the_control_does(sessions: dict[str, dm.Session], tmp_path: Path, name: str, edited_as: str, bound: float) -> None:
    session = sessions[name]
    control = ablation(session, 2)
    written = dm.export_gguf(session, control, tmp_path / "out.gguf", edited_as)
    wanted = under(session, control)
    again = dm.load(tmp_path / "out.gguf", device="cpu")  # unpacked by transformers
    assert (again.logits(PROMPTS) - wanted).abs().max() < bound * wanted.std()
    assert (session.logits(PROMPTS) - wanted).abs().max() > 10 * bound * wanted.std()
    assert written.head == (name != "llama")


def test_all_that_is_not_edited_is_as_it_was(files: dict[str, Path], sessions: dict[str, dm.Session], tmp_path: Path) -> None:
    written = dm.export_gguf(sessions["tied"], ablation(sessions["tied"]), tmp_path / "out.gguf")
    before, after = GGUFReader(files["tied"]), GGUFReader(tmp_path / "out.gguf")
    assert header(before) == header(after)
    held = {tensor.name: tensor for tensor in after.tensors}
    changed = {tensor.name for tensor in before.tensors if tensor.tensor_type != held[tensor.name].tensor_type or not np.array_equal(tensor.data, held[tensor.name].data)}
    assert changed == {"token_embd.weight", *(f"blk.{layer}.{writer}.weight" for layer in range(3) for writer in ("attn_output", "ffn_down"))}
    assert written.tensors == len(changed)
    assert held.keys() - {tensor.name for tensor in before.tensors} == {"output.weight"}
    embedding = next(tensor for tensor in before.tensors if tensor.name == "token_embd.weight")
    assert np.array_equal(held["output.weight"].data, embedding.data)


def test_edited_tensors_stay_in_q8_0_where_they_were(files: dict[str, Path], sessions: dict[str, dm.Session], tmp_path: Path) -> None:
    session, control = sessions["llama"], ablation(sessions["llama"])
    written = dm.export_gguf(session, control, tmp_path / "out.gguf", "q8_0")
    assert (written.tensors, written.packed) == (7, 3)
    assert "7 tensors edited (3 in Q8_0, 4 in F32)" in str(written)
    assert "Rounding to Q8_0 put back 0.0" in str(written)
    held = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "out.gguf").tensors}
    assert {name for name, tensor in held.items() if tensor.tensor_type.name == "Q8_0"} == {f"blk.{layer}.ffn_down.weight" for layer in range(3)}
    basis, before = control.parts[0].vectors.numpy(), {tensor.name: tensor for tensor in GGUFReader(files["llama"]).tensors}
    for layer in range(3):
        there, was = (dequantize(one.data, one.tensor_type) for one in (held[f"blk.{layer}.ffn_down.weight"], before[f"blk.{layer}.ffn_down.weight"]))
        assert np.linalg.norm(basis @ there) < 5e-4 * np.linalg.norm(basis @ was)
    assert 0 < written.left < 5e-4
    wanted = under(session, control)
    assert (dm.load(tmp_path / "out.gguf", device="cpu").logits(PROMPTS) - wanted).abs().max() < 0.1 * wanted.std()


def test_what_is_in_fewer_bits_becomes_q8_0(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "coarse.gguf", tiny_llama(), kinds={"mlp.down_proj.weight": "Q4_1", "up_proj.weight": "Q5_0"})
    session = dm.load(file, device="cpu")
    control = ablation(session)
    written = dm.export_gguf(session, control, tmp_path / "out.gguf", "q8_0")
    assert "7 tensors edited (3 in Q8_0, 4 in F32)" in str(written)
    held, was = ({tensor.name: tensor for tensor in GGUFReader(one).tensors} for one in (tmp_path / "out.gguf", file))
    assert {name: one.tensor_type.name for name, one in held.items() if name.startswith("blk.1.ffn")} == {
        "blk.1.ffn_down.weight": "Q8_0", "blk.1.ffn_up.weight": "Q5_0", "blk.1.ffn_gate.weight": "F32", "blk.1.ffn_norm.weight": "F32",
    }  # fmt: skip
    basis = control.parts[0].vectors.numpy()
    for layer in range(3):
        now, before = (dequantize(one[f"blk.{layer}.ffn_down.weight"].data, one[f"blk.{layer}.ffn_down.weight"].tensor_type) for one in (held, was))
        assert np.linalg.norm(basis @ now) < 5e-4 * np.linalg.norm(basis @ before)
    wanted = under(session, control)
    assert (dm.load(tmp_path / "out.gguf", device="cpu").logits(PROMPTS) - wanted).abs().max() < 0.1 * wanted.std()


@pytest.mark.parametrize("shape", [(128, 96), (2, 128, 96)])
@pytest.mark.parametrize("outputs_first", [True, False])
def test_blocks_of_q8_0_are_near_and_keep_the_edit(shape: tuple[int, ...], outputs_first: bool) -> None:
    """Read by the package gguf, beside what that package packs to the nearest."""
    rng = torch.Generator().manual_seed(0)
    before = torch.randn(shape, generator=rng)
    outputs = before if outputs_first else before.mT
    basis = torch.linalg.qr(torch.randn(outputs.shape[-2], 2, generator=rng)).Q.mT
    exact = outputs - basis.mT @ (basis @ outputs)
    exact = (exact if outputs_first else exact.mT).contiguous()
    packed, put_back = packed_q8_0(before, exact, basis, outputs_first)
    nearest = quantize(exact.numpy(), GGMLQuantizationType.Q8_0)
    assert packed.shape == nearest.shape
    ours, theirs = (torch.from_numpy(dequantize(one, GGMLQuantizationType.Q8_0)).view(shape) for one in (packed, nearest))
    left, left_by_nearest, was = (float((basis @ (one if outputs_first else one.mT)).norm()) for one in (ours, theirs, before))
    assert left < 5e-4 * was < left_by_nearest
    assert put_back.share == pytest.approx(left / was, rel=1e-2)
    assert (ours - exact).norm() < 1.1 * (theirs - exact).norm()


def test_packed_tensors_that_are_not_edited_stay_packed(files: dict[str, Path], sessions: dict[str, dm.Session], tmp_path: Path) -> None:
    control = ablation(sessions["llama"])
    attention = replace(control, parts=(replace(control.parts[0], scope=dm.Scope(role="attn")),))
    dm.export_gguf(sessions["llama"], attention, tmp_path / "out.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "out.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"
    assert kinds["blk.0.attn_output.weight"] == "F32"


def as_llama_cpp(session: dm.Session, file: Path) -> dict[str, Tensor]:
    """What an adapter's file adds to the weights of the model, by the file's names of them, as llama.cpp computes it."""
    reader = GGUFReader(file)
    assert {name: value for name, value in header(reader).items() if name.startswith(("general", "adapter"))} == {
        "general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 0.0,
    }  # fmt: skip
    halves = {tensor.name: torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)) for tensor in reader.tensors}
    gained = {}
    for name in {name.removesuffix(".lora_a").removesuffix(".lora_b") for name in halves}:
        a, b = halves[f"{name}.lora_a"], halves[f"{name}.lora_b"]
        gained[name] = a @ b.T if name == "token_embd.weight" else b @ a  # rows of the embedding are looked up in a
    return gained


def test_an_adapter_adds_what_the_control_does(files: dict[str, Path], sessions: dict[str, dm.Session], tmp_path: Path) -> None:
    session = sessions["llama"]
    control = ablation(session, 2, 0.7)
    written = dm.export_gguf_adapter(session, control, tmp_path / "lora.gguf")
    assert (written.weights, written.rank) == (7, 2)
    plain = dm.load(files["llama"], device="cpu")
    names = {"token_embd": "embed_tokens", **{f"blk.{layer}.{short}": f"layers.{layer}.{long}" for layer in range(3) for short, long in (("attn_output", "self_attn.o_proj"), ("ffn_down", "mlp.down_proj"))}}
    with torch.no_grad():
        for name, gained in as_llama_cpp(plain, tmp_path / "lora.gguf").items():
            plain.model.get_parameter(f"model.{names[name.removesuffix('.weight')]}.weight").add_(gained)
    wanted = under(session, control)
    assert (plain.logits(PROMPTS) - wanted).abs().max() < 1e-4 * wanted.std()


def test_what_llama_cpp_cannot_hold_is_refused_and_nothing_is_written(
    files: dict[str, Path], sessions: dict[str, dm.Session], tiny: dict[str, dm.Session], tmp_path: Path
) -> None:
    llama = sessions["llama"]
    gated = ablation(llama).when(gate_on_length(llama, PROMPTS, [True, False, False, False]))
    queries = Adapter(low_rank={"model.layers.1.self_attn.q_proj": (torch.ones(1, 64), torch.ones(64, 1))})
    adapter = Control(parts=(), layout=llama.layout, model_name=llama.name, made_from={}, adapters=(queries,))
    for export, session, control, why in (
        (dm.export_gguf_adapter, sessions["tied"], ablation(sessions["tied"]), "embedding that is also the output head"),
        (dm.export_gguf_adapter, sessions["gpt2"], ablation(sessions["gpt2"]), r"no adapter for .*bias"),
        (dm.export_gguf_adapter, llama, adapter, "q_proj.weight in another order"),
        (dm.export_gguf, llama, gated, "it is gated"),
    ):
        with pytest.raises(ControlError, match=why):
            export(session, control, tmp_path / "out.gguf")
    for export in (dm.export_gguf, dm.export_gguf_adapter):
        with pytest.raises(ModelError, match=r"convert_hf_to_gguf\.py"):
            export(tiny["llama"], ablation(tiny["llama"]), tmp_path / "out.gguf")
    with pytest.raises(ModelError, match="loaded as bfloat16"):
        dm.export_gguf(dm.load(files["llama"], device="cpu", dtype="bfloat16"), ablation(llama), tmp_path / "out.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("edited_as", "size"), [("f16", 1e3), ("q8_0", 1e4), ("f32", 1e20)])
def test_a_value_too_large_for_its_type_is_told(sessions: dict[str, dm.Session], tmp_path: Path, edited_as: str, size: float) -> None:
    adapter = Adapter(low_rank={"model.layers.1.mlp.down_proj": (torch.full((1, 96), size), torch.full((64, 1), size))})
    llama = sessions["llama"]
    control = Control(parts=(), layout=llama.layout, model_name=llama.name, made_from={}, adapters=(adapter,))
    with pytest.raises(ControlError, match=f"down_proj.weight that are too large for {edited_as.upper()}"):
        dm.export_gguf(llama, control, tmp_path / "out.gguf", edited_as)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_both(files: dict[str, Path], sessions: dict[str, dm.Session], demeanor: Any, tmp_path: Path) -> None:
    dm.save_control(ablation(sessions["llama"]), tmp_path / "c.safetensors")
    for form, count in (("gguf", "tensors"), ("lora-gguf", "weights")):
        ended = demeanor("export", files["llama"], "--control", tmp_path / "c.safetensors", "--as", form, "-o", tmp_path / f"{form}.gguf", "--json")
        assert ended.code == 0, ended.err
        assert json.loads(ended.out)[count] == 7
    assert "is no GGUF file" in demeanor("export", "organism", "--control", tmp_path / "c.safetensors", "--as", "gguf", "-o", tmp_path / "more.gguf").err
