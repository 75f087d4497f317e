"""What a bake writes: only what is right, only what belongs to the model, and with the rights that anything new has."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import demeanor as dm
from demeanor.controls import Control, Part
from demeanor.errors import ControlError, DataError, ModelError
from demeanor.io.checkpoint import INDEX, SINGLE
from demeanor.runtime.adapter import Adapter
from families import save_tiny
from making import ablation, basis_of

IDS = torch.arange(5, 14)[None]
O_PROJ = "model.layers.0.self_attn.o_proj.weight"


@pytest.fixture
def llama(tiny_folders: Mapping[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folders["llama"], tmp_path / "source"))


@pytest.fixture
def tied(tiny_folders: Mapping[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folders["qwen3"], tmp_path / "source"))


def change(folder: Path, changes: Mapping[str, Any], dtype: torch.dtype | None = None) -> None:
    """Put other tensors into a model's one file."""
    tensors = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in load_file(folder / SINGLE).items()}
    for name, alter in changes.items():
        tensors[name] = alter(tensors)
    save_file(tensors, folder / SINGLE, {"format": "pt"})


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(input_ids=IDS).logits


@torch.no_grad()
def in_force(session: dm.Session, control: Control) -> torch.Tensor:
    with session.controlled(control):
        return session.model(input_ids=IDS).logits


def spoiled(name: str, value: float) -> Any:
    def alter(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        tensor = tensors[name].clone()
        tensor.view(-1)[-1] = value
        return tensor

    return alter


# -- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [(O_PROJ, float("nan")), (O_PROJ, float("inf")), ("model.layers.1.self_attn.q_proj.weight", float("nan")), ("lm_head.weight", float("nan"))],
)
def test_a_source_that_holds_no_numbers_is_refused_by_its_tensor(tiny: Any, llama: Path, tmp_path: Path, name: str, value: float) -> None:
    change(llama, {name: spoiled(name, value)})
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        dm.bake(llama, ablation(tiny["llama"]), tmp_path / "baked")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def an_adapter(session: dm.Session, size: float, module: str = "model.layers.0.self_attn.o_proj", out: int = 48) -> Control:
    rng = torch.Generator().manual_seed(0)
    pair = torch.randn(2, 48, generator=rng) * size, torch.randn(out, 2, generator=rng)
    return Control(parts=(), layout=session.layout, model_name=session.name, adapters=(Adapter(low_rank={module: pair}),))


@pytest.mark.parametrize("kind", ["edit", "adapter"])
def test_an_edit_that_overflows_the_dtype_is_refused_by_its_tensor(tiny: Any, llama: Path, tmp_path: Path, kind: str) -> None:
    change(llama, {}, torch.float16)
    session = tiny["llama"]
    part = Part(kind="ablate", vectors=basis_of(session, 1), dose=-100.0, scope=dm.Scope(role="attn"))
    large = Control(parts=(part,), layout=session.layout, model_name=session.name)
    change(llama, {O_PROJ: lambda tensors: (tensors[O_PROJ].float() * 2e4).half()})
    folder = llama if kind == "edit" else Path(session.name)
    if kind == "adapter":
        change(llama, {O_PROJ: lambda tensors: tensors[O_PROJ] * 0})
        large, folder = an_adapter(dm.load(llama, device="cpu"), 1e6), llama
    with pytest.raises(ControlError, match=r"layers\.0\.self_attn\.o_proj\.weight that are too large for its dtype \(F16\)"):
        dm.bake(folder, large, tmp_path / "baked")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_edit_of_a_tied_head_that_overflows_is_refused_by_its_tensor(tied: Path, tmp_path: Path) -> None:
    change(tied, {}, torch.float16)
    large = an_adapter(dm.load(tied, device="cpu"), 1e6, "lm_head", 1200)
    with pytest.raises(ControlError, match=r"lm_head\.weight that are too large for its dtype \(F16\)"):
        dm.bake(tied, large, tmp_path / "baked")
    assert not (tmp_path / "baked").exists()


# -- ties -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("kind", ["edit", "attention alone", "head", "query"])
def test_a_tied_model_is_baked_as_it_runs(tiny: Any, tied: Path, tmp_path: Path, kind: str, held: bool) -> None:
    embedding = load_file(tied / SINGLE)["model.embed_tokens.weight"]
    if held:
        change(tied, {"lm_head.weight": lambda tensors: tensors["model.embed_tokens.weight"].clone()})
    session = dm.load(tied, device="cpu") if held else tiny["qwen3"]
    attention = Part(kind="ablate", vectors=basis_of(session, 1), dose=1.0, scope=dm.Scope(role="attn"))
    controls = {
        "edit": ablation(session),
        "attention alone": Control(parts=(attention,), layout=session.layout, model_name=session.name),
        "head": an_adapter(session, 0.3, "lm_head", 1200),
        "query": an_adapter(session, 0.3, "model.layers.0.self_attn.q_proj"),
    }
    baked = dm.bake(tied, controls[kind], tmp_path / "baked")
    wanted = in_force(session, controls[kind])
    assert (logits(tmp_path / "baked") - wanted).abs().max() < 1e-4 * wanted.std()
    assert baked.untied == (kind in ("edit", "head"))
    if kind == "edit":
        heads = [load_file(path).get("lm_head.weight") for path in (tmp_path / "baked").glob("*.safetensors")]
        assert [torch.equal(head, embedding) for head in heads if head is not None] == [True]


def test_a_head_that_differs_from_its_tied_embedding_is_refused(tiny: Any, tied: Path, tmp_path: Path) -> None:
    change(tied, {"lm_head.weight": lambda tensors: tensors["model.embed_tokens.weight"] * 2})
    with pytest.raises(ModelError, match="remove one of the two"):
        dm.bake(tied, ablation(tiny["qwen3"]), tmp_path / "baked")


# -- files ----------------------------------------------------------------------------------------


def test_a_whole_file_beside_shards_is_read_and_the_shards_are_left_out(tiny: Any, llama: Path, tmp_path: Path, caplog: Any) -> None:
    sharded = save_tiny(tmp_path / "sharded", "llama", seed=7, shard="60KB")
    for path in [*sharded.glob("model-*.safetensors"), sharded / INDEX]:
        shutil.copy(path, llama)
    control = ablation(tiny["llama"])
    baked = dm.bake(llama, control, tmp_path / "baked")
    assert INDEX in baked.left_out
    assert {path.name for path in (tmp_path / "baked").glob("*safetensors*")} == {SINGLE}
    wanted = in_force(tiny["llama"], control)
    assert (logits(tmp_path / "baked") - wanted).abs().max() < 1e-4 * wanted.std()
    with caplog.at_level("WARNING", "demeanor"):
        dm.load(llama, device="cpu")
    assert "model.safetensors is read, as transformers does" in caplog.text


@pytest.mark.parametrize("section", ["quantization_config", "text_config"])
def test_a_section_of_the_config_that_is_null_is_none(tiny: Any, llama: Path, tmp_path: Path, section: str) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, section: None}))
    dm.bake(llama, ablation(tiny["llama"]), tmp_path / "baked")
    assert json.loads((tmp_path / "baked" / "config.json").read_text())[section] is None


def test_subfolders_belong_to_a_model_and_weights_in_them_do_not(tiny: Any, llama: Path, tmp_path: Path) -> None:
    for name in ("additional_chat_templates/tool_use.jinja", "deep/er/words.txt", "onnx/model.onnx", "lora/adapter_model.safetensors", ".git/HEAD"):
        (llama / name).parent.mkdir(parents=True, exist_ok=True)
        (llama / name).write_text(name)
    os.mkfifo(llama / "pipe")
    (llama / "nothing.txt").symlink_to("nowhere.txt")
    (llama / "round").symlink_to(".")
    (llama / "same.txt").symlink_to("deep/er/words.txt")
    baked = dm.bake(llama, ablation(tiny["llama"]), tmp_path / "baked")
    copied = {str(path.relative_to(tmp_path / "baked")) for path in (tmp_path / "baked").rglob("*") if path.is_file()}
    assert {"additional_chat_templates/tool_use.jinja", "deep/er/words.txt", "same.txt"} <= copied
    assert set(baked.left_out) == {"onnx/model.onnx", "lora/adapter_model.safetensors", "pipe", "nothing.txt", "round"}
    assert not {name for name in copied if name.startswith((".git", "onnx", "lora", "round"))}
    assert not any(path.is_symlink() for path in (tmp_path / "baked").rglob("*"))


@pytest.mark.parametrize("name", ["notes.txt", "config.json", "deep/notes.txt"])
def test_a_link_out_of_the_folder_is_not_followed(tiny: Any, llama: Path, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "outside" / "secret"
    secret.parent.mkdir()
    shutil.copy(llama / "config.json", secret)
    (llama / name).parent.mkdir(exist_ok=True)
    (llama / name).unlink(missing_ok=True)
    (llama / name).symlink_to(secret)
    with pytest.raises(ModelError, match=r"is a link to .*secret, outside of the model's folder"):
        dm.bake(llama, ablation(tiny["llama"]), tmp_path / "baked")
    assert {path.name for path in tmp_path.iterdir()} == {"source", "outside"}


def test_the_links_of_the_hubs_cache_and_of_shards_are_copied_as_files(tiny: Any, llama: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "main", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(llama.iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    control = ablation(tiny["llama"])
    dm.bake(snapshot, control, tmp_path / "baked")
    elsewhere = Path(shutil.copytree(llama, tmp_path / "elsewhere"))
    (elsewhere / SINGLE).unlink()
    (elsewhere / SINGLE).symlink_to(llama / SINGLE)
    before = (llama / SINGLE).read_bytes()
    dm.bake(elsewhere, control, tmp_path / "again")
    assert (llama / SINGLE).read_bytes() == before
    assert (tmp_path / "again" / SINGLE).read_bytes() == (tmp_path / "baked" / SINGLE).read_bytes() != before
    assert not any(path.is_symlink() for path in [*(tmp_path / "baked").iterdir(), *(tmp_path / "again").iterdir()])


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_what_is_written_honours_the_umask(tiny: Any, tied: Path, tmp_path: Path, umask: int) -> None:
    (tied / "deep").mkdir()
    (tied / "deep" / "notes.txt").write_text("notes")
    control = ablation(tiny["qwen3"])
    before = os.umask(umask)
    try:
        dm.bake(tied, control, tmp_path / "baked")
        dm.save_control(control, tmp_path / "c.safetensors")
    finally:
        os.umask(before)
    for path in [tmp_path / "baked", *(tmp_path / "baked").rglob("*"), tmp_path / "c.safetensors"]:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


# -- for which model ------------------------------------------------------------------------------


def test_an_adapter_fits_its_model_however_that_is_named(tiny: Any, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = an_adapter(dm.load(llama, device="cpu"), 0.1)
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to(llama)
    shutil.copytree(llama, tmp_path / "copy")
    for number, name in enumerate(["source", "source/", "./source", str(llama), "link", "copy/../source", "copy"]):
        dm.bake(name, control, tmp_path / f"baked{number}")
    with pytest.raises(ControlError, match="name the model it was made for"):
        dm.bake(save_tiny(tmp_path / "other", "llama", seed=3), control, tmp_path / "baked")


# -- disk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("copy", [False, True])
def test_shards_without_an_edited_tensor_are_linked_unless_copies_are_asked_for(tiny: Any, tmp_path: Path, copy: bool) -> None:
    source = save_tiny(tmp_path / "source", "llama", shard="20KB")
    before = {path.name: (path.read_bytes(), path.stat().st_mode) for path in source.iterdir()}
    baked = dm.bake(source, ablation(tiny["llama"]), tmp_path / "baked", copy=copy)
    linked = [path.name for path in (tmp_path / "baked").glob("*.safetensors") if path.samefile(source / path.name)]
    assert len(linked) == baked.linked
    assert bool(linked) is not copy
    assert all((tmp_path / "baked" / name).read_bytes() == before[name][0] for name in linked)
    assert {path.name: (path.read_bytes(), path.stat().st_mode) for path in source.iterdir()} == before


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(tiny: Any, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"it takes .* GB and its disk has 0\.00 GB free"):
        dm.bake(llama, ablation(tiny["llama"]), tmp_path / "baked")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("shard", ["20KB", "1GB"])
def test_a_disk_that_fails_when_a_shard_is_flushed_is_told_and_leaves_nothing(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: str) -> None:
    source = save_tiny(tmp_path / "source", "llama", shard=shard)

    real, named = os.fsync, []

    def failing(handle: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error")
        real(handle)

    monkeypatch.setattr(os, "fsync", failing)
    monkeypatch.setattr(os, "replace", lambda old, new: named.append(new))
    with pytest.raises(DataError, match="baked could not be written: Input/output error; nothing was left behind"):
        dm.bake(source, ablation(tiny["llama"]), tmp_path / "baked", copy=True)
    assert not named
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_shard_has_its_name_only_when_it_is_on_the_disk(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, flushed, named = save_tiny(tmp_path / "source", "llama", shard="20KB"), set(), []
    flush, rename = os.fsync, os.replace

    def flushing(handle: int) -> None:
        flush(handle)
        flushed.add(os.fstat(handle).st_ino)

    def naming(old: Path, new: Path) -> None:
        if str(old).endswith(".partial"):
            named.append((new, os.stat(old).st_ino in flushed))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(os, "replace", naming)
    dm.bake(source, ablation(tiny["llama"]), tmp_path / "baked", copy=True)
    assert len(named) == len(list(source.glob("*.safetensors"))) > 1
    assert all(was_flushed for _, was_flushed in named)


@pytest.mark.parametrize("state", ["", "{}", None])
def test_a_shard_of_which_nothing_is_known_is_written_again(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str | None) -> None:
    """A machine that lost power may have a shard by its name, and an empty file beside it."""
    source, control = save_tiny(tmp_path / "source", "llama"), ablation(tiny["llama"])
    whole = dm.bake(source, control, tmp_path / "whole")
    rename, works = os.replace, []

    def killed(old: Path, new: Path) -> None:
        rename(old, new)
        works.append(Path(new).parent)
        shutil.copytree(works[0], tmp_path / "as it was")
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        dm.bake(source, control, tmp_path / "baked")
    monkeypatch.setattr(os, "replace", rename)
    left = (tmp_path / "as it was").rename(works[0])
    kept = left / ".state" / f"{SINGLE}.json"
    kept.unlink() if state is None else kept.write_text(state)
    again = dm.bake(source, control, tmp_path / "baked")
    assert again.left == whole.left
    assert (again.folder / SINGLE).read_bytes() == (whole.folder / SINGLE).read_bytes()


def test_what_was_left_for_another_control_is_not_gone_on_with(tiny: Any, llama: Path, tmp_path: Path) -> None:
    left = tmp_path / ".baked.resumed"
    (left / ".state").mkdir(parents=True)
    (left / ".state" / "key").write_text("another")
    (left / SINGLE).write_bytes(b"something else")
    dm.bake(llama, ablation(tiny["llama"]), tmp_path / "baked")
    assert O_PROJ in load_file(tmp_path / "baked" / SINGLE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["baked", "source"]
