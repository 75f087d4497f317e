"""A proof is kept, and done again whenever anything changed that it depends on."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

import demeanor as dm
from demeanor.errors import AccountingError
from demeanor.io.cache import CACHE, CACHES, cache_folder
from demeanor.models import kept_proof, proven
from demeanor.models.loading import resolve
from families import save_tiny, tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of one test."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "proofs"


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The class of every model that is proven, as it happens."""
    seen: list[str] = []
    prove = proven.prove

    def counted(model: Any) -> Any:
        seen.append(type(model).__name__)
        return prove(model)

    monkeypatch.setattr(proven, "prove", counted)
    return seen


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(resolve("organism")[0])


def test_a_second_load_has_the_layout_of_the_first(proofs: list[str], tmp_path: Path) -> None:
    place = save_tiny(tmp_path / "m", "gemma2")
    first, second = (dm.load(place, device="cpu") for _ in range(2))
    assert len(proofs) == 1
    assert (first.cached, second.cached) == (False, True)
    assert second.layout == first.layout
    assert second.layout.to_json() == first.layout.to_json()


def test_the_same_model_elsewhere_is_the_same(proofs: list[str], tmp_path: Path) -> None:
    dm.load(save_tiny(tmp_path / "one", "llama"), device="cpu")
    assert dm.load(save_tiny(tmp_path / "other", "llama"), device="cpu").cached
    assert len(proofs) == 1


def test_proof_can_be_asked_for(proofs: list[str]) -> None:
    dm.load("organism", device="cpu")
    assert not dm.load("organism", device="cpu", prove=True).cached
    assert len(proofs) == 2
    assert dm.load("organism", device="cpu").cached


def _one_weight(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.get_input_embeddings().weight[37, 11] += 1.0


def _a_setting(model: PreTrainedModel) -> None:
    model.config.rms_norm_eps = 1e-3


def _a_module(model: PreTrainedModel) -> None:
    model.model.layers[1].mlp.act_fn = nn.ReLU()


def _a_number_in_a_module(model: PreTrainedModel) -> None:
    model.model.layers[1].self_attn.scaling *= 2


def _dtype(model: PreTrainedModel) -> None:
    model.to(torch.bfloat16)


CHANGES = [_one_weight, _a_setting, _a_module, _a_number_in_a_module, _dtype]


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_in_memory_is_proven_again(proofs: list[str], tokenizer: Any, change: Callable[[PreTrainedModel], None]) -> None:
    for changed in (False, False, True):
        model = tiny_model("llama")
        if changed:
            change(model)
        dm.load(model, tokenizer=tokenizer)
    assert len(proofs) == 2


@pytest.mark.parametrize("name", ["versions", "sources"])
def test_another_version_proves_again(proofs: list[str], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    dm.load("organism", device="cpu")
    told = kept_proof._versions()
    changed = {**told, ("torch" if name == "versions" else "sources"): "another"}
    monkeypatch.setattr(kept_proof, "_versions", lambda: changed)
    assert not dm.load("organism", device="cpu").cached
    assert len(proofs) == 2


def test_every_source_that_proves_is_part_of_the_key() -> None:
    package, wanted, found = Path(dm.__file__).parent, ["models/proven.py"], set[str]()
    while wanted:
        found.add(name := wanted.pop())
        for node in ast.walk(ast.parse((package / name).read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                folder = (package / name).parents[node.level - 1]
                places = [folder / Path(*(node.module or "").split("."), *end) for end in ([], *([own.name] for own in node.names))]
                files = {str(file.relative_to(package)) for place in places if (file := place.with_suffix(".py")).is_file()}
                wanted += files - found
    assert {name for name in found if not name.startswith(("io/", "errors.py", "progress.py"))} == set(kept_proof.SOURCES)


def test_other_weights_of_the_same_structure_are_proven_again(proofs: list[str], tmp_path: Path) -> None:
    for seed in (0, 1):
        assert not dm.load(save_tiny(tmp_path / str(seed), "llama", seed=seed), device="cpu").cached
    assert len(proofs) == 2


def test_a_model_with_code_of_its_own_or_hooks_is_never_kept(proofs: list[str], tokenizer: Any, folder: Path) -> None:
    class Own(nn.SiLU):
        pass

    def with_own(model: PreTrainedModel) -> None:
        model.model.layers[0].mlp.act_fn = Own()  # type: ignore[union-attr, union-attr]

    def hooked(model: PreTrainedModel) -> None:
        model.model.layers[0].register_forward_hook(lambda m, args, out: None)  # type: ignore[union-attr, union-attr]

    def patched(model: PreTrainedModel) -> None:
        own = model.model.layers[0].mlp  # type: ignore[union-attr]
        own.forward = own.forward  # type: ignore[union-attr, method-assign]

    for change in (with_own, hooked, patched):
        for _ in range(2):
            model = tiny_model("llama")
            change(model)
            assert not dm.load(model, tokenizer=tokenizer).cached
    assert len(proofs) == 6
    assert not folder.exists()


def test_a_model_that_breaks_after_its_proof_was_kept_is_refused(tokenizer: Any) -> None:
    dm.load(tiny_model("llama"), tokenizer=tokenizer)
    broken = tiny_model("llama")
    with torch.no_grad():
        broken.model.layers[2].mlp.down_proj.weight[5, 3] = float("nan")  # type: ignore[union-attr]
    with pytest.raises(AccountingError, match="not numbers"):
        dm.load(broken, tokenizer=tokenizer)


# -- the file --------------------------------------------------------------------------------------


DAMAGES: dict[str, Callable[[str], str]] = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "another axis": lambda text: text.replace('"axis": 0', '"axis": 1', 1),
    "another scale": lambda text: text.replace('"scale": 1.0', '"scale": 2.0', 1),
    "other JSON": lambda text: "[1, 2]",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_told_and_written_anew(proofs: list[str], folder: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    plain = dm.load("organism", device="cpu").layout
    (file,) = folder.iterdir()
    text = file.read_text()
    assert DAMAGES[damage](text) != text
    file.write_text(DAMAGES[damage](text))
    capsys.readouterr()
    assert dm.load("organism", device="cpu").layout == plain
    assert capsys.readouterr().err.count("is damaged and not used") == 1
    assert dm.load("organism", device="cpu").cached
    assert len(proofs) == 2


def test_a_folder_that_cannot_be_written_is_told_once(
    proofs: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(CACHE, str(tmp_path / "file"))
    for _ in range(2):
        assert not dm.load("organism", device="cpu").cached
    said = [line for line in capsys.readouterr().err.splitlines() if "not kept" in line]
    assert len(said) == 1
    assert CACHE in said[0]
    assert len(proofs) == 2


def test_what_is_kept_is_the_layout_and_no_more(folder: Path) -> None:
    layout = dm.load("organism", device="cpu").layout
    (file,) = folder.iterdir()
    kept = json.loads(file.read_text())
    assert set(kept) == {"layout", "hash", "digest"}
    assert kept["layout"] == layout.to_json()
    assert kept["hash"] == replace(layout, weights="").hash


def test_where_the_folder_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv(CACHE)
    monkeypatch.setenv(CACHES, str(tmp_path))
    assert cache_folder() == tmp_path / "demeanor"
    monkeypatch.setenv(CACHES, "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "demeanor"


@pytest.mark.long
def test_two_processes_at_once_leave_one_whole_file(folder: Path) -> None:
    code = "import demeanor as dm; print(dm.load('organism', device='cpu').layout.hash)"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [process.communicate() for process in both]
    assert len({out for out, _ in ended}) == 1, ended
    assert [err for _, err in ended] == ["", ""]
    assert [file.suffix for file in folder.iterdir()] == [".json"], os.listdir(folder)
    assert dm.load("organism", device="cpu").cached


# -- what is said ----------------------------------------------------------------------------------


def test_inspect_says_whether_it_proved(demeanor) -> None:  # type: ignore[no-untyped-def]
    assert "(cached)" not in demeanor("inspect", "organism").out
    assert "structure proven (cached)" in demeanor("inspect", "organism").out
    assert "(cached)" not in demeanor("inspect", "organism", "--prove").out
