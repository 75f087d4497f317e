"""Control vectors of llama.cpp: what the file holds does to a plain model what the control does, and comes back as a control."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, PreTrainedModel

import demeanor as dm
from demeanor.controls import Control, convert
from demeanor.errors import ControlError, DataError
from demeanor.io.vectors import write_vectors
from making import PROMPTS, a_direction, ablation, assert_logits, gate_on_length


def moved(session: dm.Session, *sites: dm.Site) -> Control:
    one, *others = (dm.add(a_direction(session, site, 5.0, seed), 0.8, tokens="all") for seed, site in enumerate(sites))
    for other in others:
        one = one.then(other)
    return one


def as_llama_cpp(folder: Path, file: Path) -> PreTrainedModel:
    """A plain model with what llama.cpp does: each vector is added to what its block returns, at every token."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    reader = GGUFReader(file)
    assert bytes(reader.get_field("general.architecture").parts[-1]) == b"controlvector"  # type: ignore[union-attr]
    for tensor in reader.tensors:
        vector = torch.tensor(tensor.data)
        block = model.model.layers[int(tensor.name.removeprefix("direction."))]
        block.register_forward_hook(lambda _, __, out, vector=vector: (out[0] + vector, *out[1:]) if isinstance(out, tuple) else out + vector)
    return model


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_plain_model_with_the_vectors_is_the_control_at_run_time(tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    session = tiny[family]
    control = moved(session, dm.Site(1), dm.Site(2), dm.Site(2, "resid_pre"))  # two of them in one place
    assert dm.export_vector(control, tmp_path / "v.gguf").layers == (1, 2)
    with session.controlled(control):
        wanted = session.logits(PROMPTS)
    assert_logits(as_llama_cpp(tiny_folders[family], tmp_path / "v.gguf"), session, wanted)
    with session.controlled(convert(tmp_path / "v.gguf", session.layout, session.name)):
        assert torch.allclose(session.logits(PROMPTS), wanted, atol=1e-4)


def test_half_of_a_vector_is_half_of_the_control(tiny: dict[str, dm.Session], tmp_path: Path) -> None:
    session = tiny["llama"]
    control = moved(session, dm.Site(1))
    dm.export_vector(control, tmp_path / "v.gguf")
    with session.controlled(control.scaled(0.5)):
        wanted = session.logits(PROMPTS)
    with session.controlled(convert(tmp_path / "v.gguf", session.layout, session.name, 0.5)):
        assert torch.allclose(session.logits(PROMPTS), wanted, atol=1e-5)


def test_what_llama_cpp_cannot_do_is_refused(tiny: dict[str, dm.Session], tmp_path: Path) -> None:
    session = tiny["llama"]
    gated = moved(session, dm.Site(1)).when(gate_on_length(session, PROMPTS, [number % 2 == 0 for number in range(len(PROMPTS))]))
    last = dm.add(a_direction(session, dm.Site(1)), 1.0)
    refused = {
        "does not ablate": ablation(session, 1), "is gated": gated, "acts on last_and_reply": last,
        "no vector before layer 1": moved(session, dm.Site(0)), "between layers": moved(session, dm.Site(1, "mlp_out")),
        "does nothing": replace(last, parts=()),
    }  # fmt: skip
    for why, control in refused.items():
        with pytest.raises(ControlError, match=why):
            dm.export_vector(control, tmp_path / "v.gguf")
    assert not (tmp_path / "v.gguf").exists()


def test_files_that_are_no_control_vector_of_this_model_are_told(tiny: dict[str, dm.Session], tmp_path: Path) -> None:
    session, file = tiny["llama"], tmp_path / "v.gguf"
    write_vectors(file, {1: torch.ones(7)}, "llama")
    with pytest.raises(ControlError, match="has 7 channels"):
        convert(file, session.layout, session.name)
    write_vectors(file, {3: torch.ones(session.layout.d_model)}, "llama")
    with pytest.raises(ControlError, match="goes to layer 3"):
        convert(file, session.layout, session.name)
    write_vectors(file, {0: torch.ones(session.layout.d_model)}, "llama")
    with pytest.raises(DataError, match=r"direction\.0"):
        convert(file, session.layout, session.name)
    write_vectors(file, {1: torch.full((session.layout.d_model,), float("nan"))}, "llama")
    with pytest.raises(DataError, match="no number"):
        convert(file, session.layout, session.name)


def test_the_command_writes_one(organism: dm.Session, demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    dm.save_control(moved(organism, dm.Site(2)), tmp_path / "c.safetensors")
    ended = demeanor("export", "organism", "--control", tmp_path / "c.safetensors", "--as", "gguf-vector", "-o", tmp_path / "v.gguf", "--json")
    assert json.loads(ended.out)["layers"] == [2]
    back = demeanor("control", "convert", tmp_path / "v.gguf", "--like", tmp_path / "c.safetensors", "-o", tmp_path / "back.safetensors")
    assert back.code == 0, back.err
    one, other = dm.load_control(tmp_path / "c.safetensors").parts[0], dm.load_control(tmp_path / "back.safetensors").parts[0]
    assert torch.allclose(one.vectors * one.dose, other.vectors * other.dose)
