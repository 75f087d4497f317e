"""Whole tensors out of files in any form, beside the same read number by number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from demeanor.io.checkpoint import open_checkpoint
from demeanor.structure import stored_values
from demeanor.structure.stored_values import StoredValues
from quantised import FORMS

# Rows and columns that are whole blocks of 128, and some that are not: 192 are one block and a half, not two of 96.
SHAPES = [(256, 384), (192, 320), (64, 448), (320, 64)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_a_whole_weight_is_read_as_the_form_says(form: str, shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packing, unpacking, method = FORMS[form]
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.rand(shape[0], 1, generator=torch.Generator().manual_seed(1))
    held = packing("m.weight", weight)
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": {"quant_method": method}}))
    monkeypatch.setattr(stored_values, "BLOCK", 7 * shape[1])  # some rows at a time, and not whole blocks of them
    values = StoredValues(open_checkpoint(tmp_path))
    torch.testing.assert_close(values.read("m.weight", torch.float32), unpacking("m.weight", held))
    assert values.read("m.weight", torch.bfloat16).dtype == torch.bfloat16
    codes_and_scales = sum(tensor.nbytes for name, tensor in held.items() if not name.endswith("_shape"))
    assert values.bytes_read == 2 * codes_and_scales


def test_what_is_plain_stays_as_it_is_stored(tmp_path: Path) -> None:
    held = {"a": torch.randn(3, 5).bfloat16(), "b": torch.arange(4), "c": torch.zeros(0, 2)}
    save_file(held, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text("{}")
    values = StoredValues(open_checkpoint(tmp_path))
    for name, tensor in held.items():
        assert torch.equal(values.read(name, torch.float32), tensor)
        assert values.read(name, torch.float32).dtype == tensor.dtype
    assert values.size(None) == 30 + 32
    assert values.size(torch.float32) == 60 + 16
