"""What was written is loaded and compared; nothing is written that would be made up on loading."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import demeanor as dm
from demeanor.controls import save_control
from demeanor.errors import CheckFailed, ModelError
from demeanor.export.verify import verify
from demeanor.io.checkpoint import SINGLE
from demeanor.models.naming import weights_of
from demeanor.runtime.adapter import Adapter
from making import ablation
from quantised import pack

CPU = dm.Loading(device="cpu")


def test_what_is_written_is_what_the_control_does(tiny: Mapping[str, dm.Session], tiny_folders: Mapping[str, Path], tmp_path: Path) -> None:
    baked = dm.bake(tiny_folders["gemma2"], ablation(tiny["gemma2"], rank=2), tmp_path / "baked", verify=CPU)
    assert baked.verified is not None
    assert baked.verified.parity < 1e-4
    assert baked.verified.left is not None
    assert baked.verified.left < 1e-5


def test_with_lengths_kept_what_is_ablated_is_gone_and_the_difference_is_said(
    tiny: Mapping[str, dm.Session], tiny_folders: Mapping[str, Path], tmp_path: Path
) -> None:
    control = ablation(tiny["gemma2"], rank=2)
    baked = dm.bake(tiny_folders["gemma2"], control, tmp_path / "baked", verify=CPU, keep_norms=True)
    assert baked.verified is not None
    assert baked.verified.left is not None
    assert baked.verified.left < 1e-5
    assert baked.verified.parity > 1e-4
    assert "with lengths kept" in str(baked)
    told = dm.audit(tiny_folders["gemma2"], tmp_path / "baked")
    assert told.kept == "columns"
    with pytest.raises(CheckFailed, match="not what the control does"):  # what is left is looked at all the same
        verify(str(tiny_folders["gemma2"]), ablation(tiny["gemma2"], seed=2), tmp_path / "baked", CPU, kept_norms=True)


def test_what_another_control_wrote_is_found_out(tiny: Mapping[str, dm.Session], tiny_folders: Mapping[str, Path], tmp_path: Path) -> None:
    dm.bake(tiny_folders["gemma2"], ablation(tiny["gemma2"], seed=1), tmp_path / "baked")
    with pytest.raises(CheckFailed, match="not what the control does"):
        verify(str(tiny_folders["gemma2"]), ablation(tiny["gemma2"], seed=2), tmp_path / "baked", CPU)


def test_a_partial_ablation_is_compared_by_its_logits_alone(tiny: Mapping[str, dm.Session], tiny_folders: Mapping[str, Path], tmp_path: Path) -> None:
    baked = dm.bake(tiny_folders["gemma2"], ablation(tiny["gemma2"], strength=0.4), tmp_path / "baked", verify=CPU)
    assert baked.verified is not None
    assert baked.verified.left is None


def test_a_model_with_a_parameter_in_no_file_is_not_written(tiny: Mapping[str, dm.Session], tiny_folders: Mapping[str, Path], tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_folders["gemma2"], tmp_path / "source"))
    tensors = load_file(source / SINGLE)
    del tensors["model.norm.weight"]
    save_file(tensors, source / SINGLE, {"format": "pt"})
    with pytest.raises(ModelError, match=r"no tensor for 1 parameters \(model\.norm\.weight first\)"):
        dm.bake(source, ablation(tiny["gemma2"]), tmp_path / "baked", verify=CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_tensors_that_are_no_part_of_the_model_are_said_to_stay(tiny: Mapping[str, dm.Session], tiny_folders: Mapping[str, Path], tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_folders["gemma2"], tmp_path / "source"))
    tensors = load_file(source / SINGLE)
    tensors["mtp.layers.0.mlp.down_proj.weight"] = tensors["model.layers.0.mlp.down_proj.weight"].clone()
    save_file(tensors, source / SINGLE, {"format": "pt"})
    baked = dm.bake(source, ablation(tiny["gemma2"]), tmp_path / "baked", verify=CPU)
    assert baked.unused == ("mtp.layers.0.mlp.down_proj.weight",)
    assert "1 tensors (mtp.layers.0.mlp.down_proj.weight first) are no part of the model" in str(baked)


def test_the_command_says_what_the_comparison_gave(demeanor, tiny: Mapping[str, dm.Session], tiny_folders: Mapping[str, Path], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    save_control(ablation(tiny["gemma2"]), tmp_path / "c.safetensors")
    arguments = ("bake", tiny_folders["gemma2"], "-c", tmp_path / "c.safetensors", "--device", "cpu")
    assert "Loaded anew: logits within" in demeanor(*arguments, "-o", tmp_path / "one").out
    assert "Loaded anew" not in demeanor(*arguments, "--no-verify", "-o", tmp_path / "two").out
    assert (tmp_path / "two").is_dir()


WITHOUT = """
import sys
from demeanor import cli
sys.argv = ["demeanor", "bake", *sys.argv[1:]]
try:
    cli.main()
finally:
    print([name for name in ("torch", "transformers") if name in sys.modules])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dtype", "rank", "options"),
    [
        ("llama", torch.float32, 1, {}),
        ("qwen3", torch.bfloat16, 1, {}),  # its head is its embedding
        ("gemma2", torch.bfloat16, 2, {}),  # it has norms behind its writers
        ("llama", torch.float16, 4, {"keep_norms": True}),
    ],
)
def test_a_bake_that_is_not_verified_imports_no_framework_and_writes_the_same(
    tiny: Mapping[str, dm.Session], tiny_folders: Mapping[str, Path], tmp_path: Path, family: str, dtype: torch.dtype, rank: int, options: dict[str, bool]
) -> None:
    """As a command of its own, beside the function in a process that has torch, on a control of its tensors."""
    source = Path(shutil.copytree(tiny_folders[family], tmp_path / "source"))
    save_file({name: tensor.to(dtype) for name, tensor in load_file(source / SINGLE).items()}, source / SINGLE, {"format": "pt"})
    session = tiny[family]
    into, out = session.layout.d_model, session.layout.writers[-1]
    rng = torch.Generator().manual_seed(0)
    width = session.model.get_parameter(out.weights[0].name).shape[1]
    pair = (torch.randn(2, width, generator=rng).bfloat16(), 0.01 * torch.randn(into, 2, generator=rng))  # of both dtypes that adapters come in
    layout = replace(session.layout, weights=weights_of(str(source)))
    control = replace(ablation(session, strength=0.9, rank=rank), layout=layout, adapters=(Adapter(low_rank={out.module: pair}),))
    save_control(control, tmp_path / "c.safetensors")
    words = [source, "-c", tmp_path / "c.safetensors", "-o", tmp_path / "baked", "--no-verify", *(f"--{name.replace('_', '-')}" for name in options)]
    ran = subprocess.run([sys.executable, "-c", WITHOUT, *map(str, words)], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
    dm.bake(source, control, tmp_path / "here", **options)
    files = sorted(path.name for path in (tmp_path / "here").glob("*.safetensors"))
    assert files == sorted(path.name for path in (tmp_path / "baked").glob("*.safetensors"))
    assert all((tmp_path / "here" / name).read_bytes() == (tmp_path / "baked" / name).read_bytes() for name in files)
    assert any((tmp_path / "here" / name).read_bytes() != (source / SINGLE).read_bytes() for name in files)


def test_a_model_in_few_bits_is_written_and_said_not_to_be_compared(tiny: Mapping[str, dm.Session], tiny_folders: Mapping[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    packed = pack(tiny_folders["llama"], tmp_path / "packed", "FP8 in blocks")
    with caplog.at_level("INFO", "demeanor"):
        baked = dm.bake(packed, ablation(tiny["llama"]), tmp_path / "baked", verify=CPU)
    assert baked.verified is None
    assert baked.unused == ()
    assert "stored in few bits (FP8), so what was written was not loaded and compared" in caplog.text
