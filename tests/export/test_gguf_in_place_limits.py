"""Edits of GGUF files in their own types that do not fit them: what is cut off is told, and what cannot be stored is refused and leaves nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, dequantize

import demeanor as dm
from making import ablation
from tiny_gguf import tiny_llama, write_gguf

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
