"""Edits of GGUF files in their own types that do not fit them: what is cut off is told, and what cannot be stored is refused and leaves nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, dequantize

import demeanor as dm
from demeanor.controls import Control
from demeanor.errors import ControlError, ModelError
from demeanor.runtime.adapters import Adapter
from making import ablation
from tiny_gguf import tiny_gpt2, tiny_llama, write_gguf

WRITERS = ("self_attn.o_proj.weight", "mlp.down_proj.weight", "embed_tokens.weight")


@pytest.fixture(scope="module")
def packed_in_8_bits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dm.Session]:
    file = write_gguf(tmp_path_factory.mktemp("model") / "q8_0.gguf", tiny_llama(width=256, inner=256), kinds=dict.fromkeys(WRITERS, "Q8_0"))
    return file, dm.load(file, device="cpu")


def test_a_dose_that_old_scales_do_not_hold_is_told_with_the_tensor_and_the_count(
    packed_in_8_bits: tuple[Path, dm.Session], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, session = packed_in_8_bits
    control = ablation(session, strength=-20)
    with caplog.at_level(logging.WARNING, "demeanor"):
        done = dm.export_gguf(session, control, tmp_path / "out.gguf", "stored")
    assert 0.2 < done.left < done.worst_left
    assert done.off < 0.5  # so that the distance alone would not tell
    basis = control.parts[0].vectors
    cut_off, shares = {}, {}
    for was, now in zip(GGUFReader(file).tensors, GGUFReader(tmp_path / "out.gguf").tensors):
        if now.tensor_type.name != "Q8_0":
            continue
        old, new = (torch.from_numpy(dequantize(one.data, one.tensor_type).copy()) for one in (was, now))
        old, new = (old.mT, new.mT) if "embd" in was.name else (old, new)
        exact = old + 20 * basis.mT @ (basis @ old)
        codes = torch.from_numpy(now.data.copy()).view(len(now.data), -1, 34)[:, :, 2:].flatten(1).view(torch.int8).int()
        ends = (codes.mT if "embd" in was.name else codes).abs() >= 127
        cut_off[was.name] = int((ends & (exact.abs() > new.abs() * 1.004)).sum())
        shares[was.name] = float((basis @ (new - exact)).norm() / (basis @ (exact - old)).norm())
    assert done.beyond == pytest.approx(sum(cut_off.values()), rel=0.02)
    worst = max(shares, key=lambda name: shares[name])
    assert done.worst_left == pytest.approx(shares[worst], rel=1e-3)
    (record,) = caplog.records
    layer, kind = worst.split(".")[1], {"ffn_down": "mlp.down_proj", "attn_output": "self_attn.o_proj"}[worst.split(".")[2]]
    start, rest = record.getMessage().split(f"model.layers.{layer}.{kind}.weight, where ")
    assert start == f"Rounding put back {done.worst_left:.1%} of the edit in "
    count, rest = rest.split(" ", 1)
    assert int(count) == pytest.approx(cut_off[worst], rel=0.02)
    assert rest == "values do not fit its scales; use --edited-as q8_0 or f16, or a smaller dose."
    assert f"{done.beyond} values do not fit their scales." in str(done)


def test_scales_that_are_made_anew_hold_the_same_dose(packed_in_8_bits: tuple[Path, dm.Session], tmp_path: Path) -> None:
    _, session = packed_in_8_bits
    done = dm.export_gguf(session, ablation(session, strength=-20), tmp_path / "out.gguf", "q8_0")
    assert done.left < 5e-4
    assert not done.beyond
    assert "do not fit" not in str(done)


@pytest.fixture(scope="module")
def with_short_biases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dm.Session]:
    """A GPT-2 with the biases of its writers in F16, and all else in F32."""
    file = tmp_path_factory.mktemp("model") / "gpt2.gguf"
    write_gguf(file, tiny_gpt2(), "gpt2", kinds={"c_proj.bias": "F16"})
    return file, dm.load(file, device="cpu")


def test_short_biases_are_edited_in_their_type(with_short_biases: tuple[Path, dm.Session], tmp_path: Path) -> None:
    file, session = with_short_biases
    control = ablation(session)
    done = dm.export_gguf(session, control, tmp_path / "out.gguf", "stored")
    assert (done.packed, done.left) == (0, None)
    before, after = ({tensor.name: tensor for tensor in GGUFReader(one).tensors} for one in (file, tmp_path / "out.gguf"))
    basis = control.parts[0].vectors.numpy()
    for layer in range(3):
        name = f"blk.{layer}.ffn_down.bias"
        assert after[name].tensor_type.name == "F16"
        was, now = (basis @ one[name].data.astype("float32") for one in (before, after))
        assert abs(now) < 0.02 * abs(was)  # to the nearest: biases are not rounded so that the edit is kept


def test_a_bias_that_its_type_does_not_hold_is_named_and_nothing_is_left_behind(with_short_biases: tuple[Path, dm.Session], tmp_path: Path) -> None:
    _, session = with_short_biases
    once = ablation(session, strength=-100)
    with pytest.raises(ControlError, match=r"c_proj\.bias that are too large for F16, so nothing was written; use a smaller dose"):
        dm.export_gguf(session, once.then(once).then(once).then(once), tmp_path / "out.gguf", "stored")
    assert not list(tmp_path.iterdir())


def test_a_failure_behind_the_first_changes_leaves_nothing_behind(packed_in_8_bits: tuple[Path, dm.Session], tmp_path: Path) -> None:
    _, session = packed_in_8_bits
    halves = {f"model.layers.{layer}.mlp.down_proj": (torch.full((1, 256), size), torch.full((256, 1), size)) for layer, size in ((0, 1e-2), (2, 1e20))}
    control = Control(parts=(), layout=session.layout, model_name=session.name, made_from={}, adapters=(Adapter(low_rank=halves),))
    with pytest.raises(ControlError, match=r"layers\.2\.mlp\.down_proj\.weight that are too large for Q8_0"):
        dm.export_gguf(session, control, tmp_path / "out.gguf", "stored")
    assert not list(tmp_path.iterdir())


def test_a_file_with_values_that_are_no_numbers_is_named_as_what_is_wrong(tmp_path: Path) -> None:
    """In a word that no prompt has, so that the model loads."""
    file = write_gguf(tmp_path / "damaged.gguf", tiny_llama(width=256, inner=256), kinds={"embed_tokens.weight": "F16"})
    embedding = next(tensor for tensor in GGUFReader(file).tensors if tensor.name == "token_embd.weight")
    with file.open("r+b") as opened:
        opened.seek(int(embedding.data_offset + embedding.n_bytes) - 2)
        opened.write(torch.tensor([torch.inf], dtype=torch.float16).numpy().tobytes())
    session = dm.load(file, device="cpu")
    with pytest.raises(ModelError, match=r"damaged\.gguf holds values that are not finite in token_embd\.weight; download it again"):
        dm.export_gguf(session, ablation(session), tmp_path / "out.gguf", "stored")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.gguf"]


def test_tensors_of_16_bits_are_not_counted_among_those_in_few(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "mixed.gguf", tiny_llama(), kinds={"mlp.down_proj.weight": "F16", "self_attn.o_proj.weight": "Q8_0"})
    session = dm.load(file, device="cpu")
    done = dm.export_gguf(session, ablation(session), tmp_path / "out.gguf", "stored")
    assert (done.tensors, done.packed) == (7, 3)
