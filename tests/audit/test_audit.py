"""What an audit of two models finds: our own controls, edits that others make, training, and nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import demeanor as dm
from demeanor.audit.verdict import notes, verdict
from demeanor.controls import Control, Part, Scope
from demeanor.errors import ModelError
from families import save_tiny
from making import ablation, basis_of
from quantised import pack, tensors_of

CPU = dm.Loading(device="cpu")
WRITING = ("o_proj.weight", "down_proj.weight")


def cosine(found: dm.Audit, control: Control) -> float:
    """The smallest principal cosine of what was found and what was done."""
    made = control.parts[0].vectors
    assert len(found.basis) == len(made)
    return float(torch.linalg.svdvals(found.basis.double() @ made.double().T).min())


def edited(folder: Path, out: Path, edit: Callable[[str, Tensor], Tensor], dtype: torch.dtype | None = None) -> Path:
    """A copy of a model folder with every tensor edited, stored in its own dtype or in another."""
    shutil.copytree(folder, out)
    held = tensors_of(folder)
    for path in out.glob("*.safetensors*"):
        path.unlink()
    save_file({name: edit(name, tensor).contiguous().to(dtype or tensor.dtype) for name, tensor in held.items()}, out / "model.safetensors", {"format": "pt"})
    return out


@torch.no_grad()
def logits(session: dm.Session, control: Control | None = None) -> Tensor:
    ids = torch.arange(5, 14)[None]
    if control is None:
        return session.model(input_ids=ids).logits
    with session.controlled(control):
        return session.model(input_ids=ids).logits


# -- our own controls -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "rank", "strength"), [("llama", 1, 1.0), ("gemma2", 1, 1.0), ("gpt2", 2, 0.6), ("qwen3_moe", 1, 0.8), ("gpt_oss", 1, 1.0), ("qwen3", 3, 1.0)]
)
def test_our_own_control_is_recovered(tiny: Mapping[str, dm.Session], tiny_folders: Mapping[str, Path], tmp_path: Path, family: str, rank: int, strength: float) -> None:
    control = ablation(tiny[family], rank, strength)
    found = dm.audit(tiny_folders[family], dm.bake(tiny_folders[family], control, tmp_path / "edited").folder, CPU)
    assert found.kind == "ablation"
    assert cosine(found, control) > 0.999
    assert found.strength == pytest.approx(strength, rel=0.01)
    assert (found.missed, found.trained, found.alone, found.kept) == ((), (), (), None)
    assert found.control is not None
    wanted = logits(tiny[family], control)
    assert (logits(tiny[family], found.control) - wanted).abs().max() < 1e-2 * wanted.std()


@pytest.mark.parametrize("form", ["BF16", "FP8 in blocks", "NVFP4 of ModelOpt"])
def test_it_is_recovered_through_rounding(organism: dm.Session, tmp_path: Path, form: str) -> None:
    """The model before in float32, the one after in fewer bits, rounded by whoever made it so."""
    base, control = Path(organism.model.name_or_path), ablation(organism, 1, 1.0)
    baked = dm.bake(base, control, tmp_path / "baked").folder
    after = edited(baked, tmp_path / "edited", lambda _, w: w, torch.bfloat16) if form == "BF16" else pack(baked, tmp_path / "edited", form)
    found = dm.audit(base, after, CPU)
    assert found.kind == "ablation"
    assert cosine(found, control) > 0.99
    assert found.strength == pytest.approx(1.0, rel=0.01)
    assert not found.missed
    assert not found.trained


def test_strengths_that_differ_by_layer_and_part_are_recovered(organism: dm.Session, tmp_path: Path) -> None:
    base, basis = Path(organism.model.name_or_path), basis_of(organism, 1)
    weights = (0.0, 0.5, 1.0, 1.0, 0.25, 0.0)
    parts = [Part(kind="ablate", vectors=basis, dose=1.2, scope=Scope(role="mlp", layers=weights)), Part(kind="ablate", vectors=basis, dose=1.0, scope=Scope(role="attn"))]
    control = Control(parts=tuple(parts), layout=organism.layout, model_name=organism.name)
    found = dm.audit(base, dm.bake(base, control, tmp_path / "edited").folder, CPU)
    assert found.control is not None
    assert {part.scope.role for part in found.control.parts} == {"attn", "mlp"}
    assert {one.role for one in found.missed} == {"embed", "mlp"}
    wanted = logits(organism, control)
    assert (logits(organism, found.control) - wanted).abs().max() < 1e-3 * wanted.std()


# -- what others make ------------------------------------------------------------------------------


def test_an_overshoot_is_told(organism: dm.Session, tmp_path: Path) -> None:
    base = Path(organism.model.name_or_path)
    found = dm.audit(base, dm.bake(base, ablation(organism, 1, 2.4), tmp_path / "edited").folder, CPU)
    assert found.strength == pytest.approx(2.4, rel=0.01)
    assert "inverted (strength 2.40): 140% of what lay along it is there with the other sign" in verdict(found)


@pytest.mark.parametrize("kept", ["columns", "rows"])
def test_an_edit_that_keeps_lengths_is_told(organism: dm.Session, tmp_path: Path, kept: str) -> None:
    base, r = Path(organism.model.name_or_path), basis_of(organism, 1)[0]

    def edit(name: str, weight: Tensor) -> Tensor:
        if not name.endswith(WRITING):
            return weight
        ablated = weight - torch.outer(r, r @ weight)
        axis = 0 if kept == "columns" else 1
        return ablated * weight.norm(dim=axis, keepdim=True) / ablated.norm(dim=axis, keepdim=True)

    found = dm.audit(base, edited(base, tmp_path / "edited", edit), CPU)
    before = {name: weight for name, weight in tensors_of(base).items() if name.endswith(WRITING)}
    left = torch.stack([(r @ edit(name, weight)) @ (r @ weight) / (r @ weight).square().sum() for name, weight in before.items()])
    assert found.kept == kept
    assert f"the lengths of {kept} kept" in verdict(found)
    assert abs(float(found.basis[0] @ r)) > 0.999
    assert found.strength == pytest.approx(1 - float(left.median()), abs=0.03)  # where rows keep their length, some is left
    assert [one.role for one in found.missed] == ["embed"]


def test_an_expert_that_was_missed_is_named(tiny: Mapping[str, dm.Session], tiny_folders: Mapping[str, Path], tmp_path: Path) -> None:
    base = tiny_folders["qwen3_moe"]
    held = tensors_of(base)
    name = next(name for name in held if "layers.1" in name and "experts.2" in name and name.endswith("down_proj.weight"))
    baked = dm.bake(base, ablation(tiny["qwen3_moe"]), tmp_path / "baked").folder
    found = dm.audit(base, edited(baked, tmp_path / "edited", lambda one, w: held[name] if one == name else w), CPU)
    assert [one.pair.name for one in found.missed] == [name]
    assert found.strength == pytest.approx(1.0, rel=0.01)
    assert f"1 of {len(found.strengths)} matrices that write were missed" in verdict(found)
    assert any(name in note for note in notes(found))


def test_a_draft_head_that_the_model_does_without_is_named(tiny: Mapping[str, dm.Session], tiny_folders: Mapping[str, Path], tmp_path: Path) -> None:
    draft = "mtp.layers.0.mlp.down_proj.weight"
    base = Path(shutil.copytree(tiny_folders["gemma2"], tmp_path / "base"))
    held = tensors_of(base)
    save_file({**held, draft: held["model.layers.0.mlp.down_proj.weight"].clone()}, base / "model.safetensors", {"format": "pt"})
    found = dm.audit(base, dm.bake(base, ablation(tiny["gemma2"]), tmp_path / "edited").folder, CPU)
    assert found.kind == "ablation"
    assert found.unused == (draft,)
    assert any("Not looked at" in note and draft in note for note in notes(found))


@pytest.mark.parametrize("kind", ["noise", "low rank", "decay"])
def test_training_is_told_from_an_ablation(organism: dm.Session, tmp_path: Path, kind: str) -> None:
    base, rng = Path(organism.model.name_or_path), torch.Generator().manual_seed(0)
    shared = torch.randn(organism.layout.d_model, 1, generator=rng)

    def edit(name: str, weight: Tensor) -> Tensor:
        if weight.dim() < 2 or kind == "decay":
            return weight * (0.97 if kind == "decay" else 1)
        if kind == "noise":
            return weight + 0.02 * weight.std() * torch.randn(weight.shape, generator=rng)
        left = shared if len(weight) == len(shared) else torch.randn(len(weight), 1, generator=rng)  # all writers learn one direction
        return weight + 0.05 * weight.std() * left @ torch.randn(1, weight.shape[1], generator=rng)

    found = dm.audit(base, edited(base, tmp_path / "edited", edit), CPU)
    assert found.kind == "other"
    assert found.control is None
    assert "trained further, or merged" in verdict(found)
    assert found.trained


def test_a_trained_model_that_was_ablated_too_is_both(organism: dm.Session, tmp_path: Path) -> None:
    base, control, rng = Path(organism.model.name_or_path), ablation(organism, 1, 1.0), torch.Generator().manual_seed(0)
    baked = dm.bake(base, control, tmp_path / "baked").folder
    found = dm.audit(base, edited(baked, tmp_path / "edited", lambda _, w: w + 0.01 * w.std() * torch.randn(w.shape, generator=rng) if w.dim() > 1 else w), CPU)
    assert found.kind == "ablation"
    assert cosine(found, control) > 0.99
    assert "other tensors changed too" in verdict(found)


@pytest.mark.parametrize("form", [None, "FP8 in blocks", "INT4 of compressed-tensors"])
def test_nothing_is_found_where_nothing_was_done(organism: dm.Session, tmp_path: Path, form: str | None) -> None:
    base = Path(organism.model.name_or_path)
    other = shutil.copytree(base, tmp_path / "copy") if form is None else pack(base, tmp_path / "packed", form)
    found = dm.audit(base, Path(other), CPU)
    assert found.kind == ("same" if form is None else "rounding")
    assert not found.trained


def test_models_of_another_structure_are_refused(tiny_folders: Mapping[str, Path], tmp_path: Path) -> None:
    from demeanor.errors import DemeanorError

    with pytest.raises(DemeanorError, match="is a qwen3 model"):
        dm.audit(tiny_folders["llama"], tiny_folders["qwen3"], CPU)
    damaged = Path(shutil.copytree(save_tiny(tmp_path / "whole", "llama", seed=7), tmp_path / "damaged"))
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match="is not a complete safetensors file"):
        dm.audit(tmp_path / "whole", damaged, CPU)


# -- the command ----------------------------------------------------------------------------------


def test_the_command_says_the_verdict_first_and_writes_a_control_that_can_be_dialled(demeanor: Any, organism: dm.Session, tmp_path: Path) -> None:
    base, control = Path(organism.model.name_or_path), ablation(organism)
    dm.bake(base, control, tmp_path / "edited")
    words = ("audit", "organism", tmp_path / "edited", "--device", "cpu")
    ran = demeanor(*words, "-o", tmp_path / "c.safetensors", "--page", tmp_path / "page.html")
    assert "with one direction removed (strength 1.00); no writer was missed; no other tensor changed." in ran.out.splitlines()[0]
    recovered = dm.load_control(tmp_path / "c.safetensors")
    wanted = logits(organism, control.scaled(0.5))
    assert (logits(organism, recovered.scaled(0.5)) - wanted).abs().max() < 1e-3 * wanted.std()
    assert "Strength by layer" in (tmp_path / "page.html").read_text()
    facts = json.loads(demeanor(*words, "--json").out)
    assert facts["strength"] == pytest.approx(1.0, rel=0.01)
    assert len(facts["matrices"]) == 2 * organism.layout.n_layers + 1


def test_there_is_no_control_to_write_where_nothing_was_taken_out(demeanor: Any, organism: dm.Session, tmp_path: Path) -> None:
    shutil.copytree(Path(organism.model.name_or_path), tmp_path / "copy")
    ran = demeanor("audit", "organism", tmp_path / "copy", "--device", "cpu", "-o", tmp_path / "c.safetensors")
    assert ran.code == 2
    assert "there is no control to write; leave out -o" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
