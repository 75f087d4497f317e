"""Models that stay on disk: what is read of them is what is read of a loaded model, and every byte is read once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DogeConfig, GptOssConfig, LlamaConfig

import demeanor as dm
from architectures.tiny import tiny_config
from architectures.tiny import tiny_model as tiny_of_type
from demeanor.errors import AccountingError, DataError, ModelError
from demeanor.models import StreamedSession, open_streamed
from demeanor.models import streamed as module
from demeanor.runtime.positions import REPLY, Position
from families import FAMILIES
from making import PROMPTS
from quantised import FORMS, mxfp4, pack, tensors_of, unpack

WIDE = {"vocab_size": 1200, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}


def streamed(session: StreamedSession, folder: Path, prompts: list[str] = PROMPTS, positions: tuple[Position, ...] = (-2, -1)) -> Tensor:
    """[prompt, layer, position, d_model] of one pass."""
    folder.mkdir(exist_ok=True)
    return torch.stack([layer.values for layer in session.layers(prompts, positions, folder)], 1)


def loaded(session: dm.Session, prompts: list[str] = PROMPTS, positions: tuple[Position, ...] = (-2, -1)) -> Tensor:
    sites = [dm.Site(layer, "resid_post", position) for layer in range(session.layout.n_layers) for position in positions]
    return session.capture(prompts, sites).values.unflatten(1, (session.layout.n_layers, len(positions)))


def assert_same(got: Tensor, wanted: Tensor, tolerance: float = 2e-6) -> None:
    assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_structure_are_those_of_the_loaded_model(family: str, tiny_folders: Mapping[str, Path], tiny: Mapping[str, dm.Session], tmp_path: Path) -> None:
    session = open_streamed(tiny_folders[family], device="cpu")
    assert_same(streamed(session, tmp_path / "pass"), loaded(tiny[family]))
    assert session.layout == tiny[family].layout
    assert session.layout.hash == tiny[family].layout.hash
    assert session.layout.weights == tiny[family].layout.weights
    assert session.layout.alphas == pytest.approx(tiny[family].layout.alphas)
    assert session.shell.bytes_read <= session.shell.values.files.size


@pytest.mark.skipif(not Path("/proc/self/io").is_file(), reason="the kernel does not tell here")
def test_no_byte_of_the_files_is_read_twice(tiny_folders: Mapping[str, Path], tmp_path: Path) -> None:
    """By the kernel's count of what the process read, the stream's own file and the tokenizer's apart."""
    session = open_streamed(tiny_folders["qwen3_moe"], device="cpu")
    session.encode("the tokenizer's files are read")

    def read_by_now() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before, counted = read_by_now(), session.shell.bytes_read
    passed = session.layers(PROMPTS, [-1], tmp_path)
    stream = sum((tmp_path / f"stream.{layer.layer}").stat().st_size for layer in passed)
    read, counted = read_by_now() - before - stream, session.shell.bytes_read - counted
    assert counted <= session.shell.values.files.size
    assert read == pytest.approx(counted, rel=0.02, abs=60_000)  # lines of sources may be read too


def test_the_mean_over_a_reply_is_that_of_the_loaded_model(tiny_folders: Mapping[str, Path], tiny: Mapping[str, dm.Session], tmp_path: Path) -> None:
    prompts = [dm.Prompt(messages=(("user", text),), reply=reply) for text, reply in zip(PROMPTS, ("you wash it .", "seven", "i cannot help with that .", "hello"))]
    session = open_streamed(tiny_folders["llama"], device="cpu")
    got, wanted = streamed(session, tmp_path / "pass", prompts, (REPLY,)), loaded(tiny["llama"], prompts, (REPLY,))  # type: ignore[arg-type]
    assert_same(got, wanted)
    with pytest.raises(DataError, match="comes without a reply"):
        session.layers(PROMPTS, [REPLY], tmp_path)


@pytest.mark.parametrize("family", ["gemma2", "qwen3_moe"])
@pytest.mark.parametrize("stopped", [0, 1, 2])
def test_a_pass_that_stopped_goes_on_after_its_last_whole_block(
    family: str, stopped: int, tiny_folders: Mapping[str, Path], tiny: Mapping[str, dm.Session], tmp_path: Path
) -> None:
    first = open_streamed(tiny_folders[family], device="cpu")
    for layer in first.layers(PROMPTS, [-2, -1], tmp_path):
        if layer.layer == stopped:
            break  # in the middle of this block, whose stream is not told to be whole
    (tmp_path / "stream.part").write_bytes(b"half of a block")
    again = open_streamed(tiny_folders[family], device="cpu")
    layers = list(again.layers(PROMPTS, [-2, -1], tmp_path))
    assert [layer.layer for layer in layers] == list(range(stopped, 3))
    assert_same(torch.stack([layer.values for layer in layers], 1), loaded(tiny[family])[:, stopped:])
    assert again.layout == tiny[family].layout


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_folders: Mapping[str, Path]) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**WIDE, tie_word_embeddings=False)).save_pretrained(folder)
    return with_tokenizer(folder, tiny_folders)


def with_tokenizer(folder: Path, tiny_folders: Mapping[str, Path]) -> Path:
    for path in (*tiny_folders["llama"].glob("token*"), *tiny_folders["llama"].glob("*.jinja")):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_few_bits_are_unpacked_as_they_come(plain: Path, form: str, tmp_path: Path) -> None:
    packed = pack(plain, tmp_path / "packed", form)
    wanted = dm.load(unpack(packed, plain, tmp_path / "unpacked", form), device="cpu")
    session = open_streamed(packed, device="cpu", dtype="float32")
    assert_same(streamed(session, tmp_path / "pass"), loaded(wanted))
    assert session.layout.hash == wanted.layout.hash
    assert session.shell.bytes_read <= session.shell.values.files.size


def test_experts_in_mxfp4_are_read_as_transformers_reads_them(tiny_folders: Mapping[str, Path], tmp_path: Path) -> None:
    sizes = {"vocab_size": 1200, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    folder = tmp_path / "model"
    torch.manual_seed(0)
    config = GptOssConfig(**sizes, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=16, pad_token_id=0)
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
    held = tensors_of(folder)
    for key in [key for key in held if key.endswith(("gate_up_proj", "down_proj"))]:
        weight = held.pop(key).float().mT.contiguous()  # [expert, out, in], as the files have it
        codes = mxfp4("w.weight", weight.flatten(0, 1))
        held[f"{key}_blocks"] = codes["w.weight"].view(torch.uint8).reshape(*weight.shape[:2], -1, 16)
        held[f"{key}_scales"] = codes["w.scale"].view(torch.uint8).reshape(*weight.shape[:2], -1)
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, folder / "model.safetensors", {"format": "pt"})
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": []}}))
    with_tokenizer(folder, tiny_folders)
    wanted = dm.load(folder, device="cpu")
    session = open_streamed(folder, device="cpu")
    assert_same(streamed(session, tmp_path / "pass"), loaded(wanted), 1e-2)  # bfloat16
    assert session.layout.hash == wanted.layout.hash


def test_what_the_proof_refuses_of_a_loaded_model_is_refused_of_one_on_disk(tiny_folders: Mapping[str, Path], tmp_path: Path) -> None:
    config = DogeConfig(vocab_size=1200, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    model = AutoModelForCausalLM.from_config(config)  # scales its stream channel by channel
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    model.save_pretrained(tmp_path / "model")
    folder = with_tokenizer(tmp_path / "model", tiny_folders)
    with pytest.raises(AccountingError, match=r"model\.layers\.0 changes the stream itself channel by channel"):
        dm.load(folder, device="cpu")
    with pytest.raises(AccountingError, match=r"\(doge\): model\.layers\.0 changes the stream itself channel by channel"):
        streamed(open_streamed(folder, device="cpu"), tmp_path / "pass")


@pytest.mark.parametrize("model_type", ["gpt_neo", "glm_moe_dsa"])
def test_what_blocks_return_beside_the_stream_may_be_given_to_no_other(model_type: str, tiny_folders: Mapping[str, Path], tmp_path: Path) -> None:
    """GPT-Neo's blocks return attention weights that nobody takes; GLM's return indices that the next block takes."""
    tiny_of_type(tiny_config(model_type)).save_pretrained(tmp_path / "model")
    folder = with_tokenizer(tmp_path / "model", tiny_folders)
    session = open_streamed(folder, device="cpu")
    if model_type == "gpt_neo":
        assert_same(streamed(session, tmp_path / "pass"), loaded(dm.load(folder, device="cpu")))
        return
    with pytest.raises(AccountingError, match=r"model\.layers\.1 is given what earlier blocks made, beside the stream"):
        streamed(session, tmp_path / "pass")


def test_what_is_never_in_memory_has_no_structure_before_it_was_passed(tiny_folders: Mapping[str, Path], tmp_path: Path) -> None:
    session = open_streamed(tiny_folders["llama"], device="cpu")
    with pytest.raises(ModelError, match="proven while prompts pass it"):
        session.layout  # noqa: B018
    with pytest.raises(DataError, match="There is no position -400"):
        session.layers(PROMPTS, [-400], tmp_path)
    with pytest.raises(DataError, match="load_in_4bit holds the whole model in memory"):
        open_streamed(tiny_folders["llama"], load_in_4bit=True)


def test_too_little_memory_for_a_proof_is_told_with_both_figures(tiny_folders: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available", lambda: 1000)
    with pytest.raises(ModelError, match=r"model\.layers\.0 .* is proven in float64, which takes about .* GB"):
        streamed(open_streamed(tiny_folders["llama"], device="cpu"), tmp_path / "pass")


def test_a_model_larger_than_memory_is_told(tiny_folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    loading = dm.Loading(device="cpu")
    assert module.larger_than_memory(str(tiny_folders["llama"]), loading) is None
    monkeypatch.setattr(module, "available", lambda: 600_000)  # its files hold 683 kB
    assert "takes 0.0 GB in memory" in str(module.larger_than_memory(str(tiny_folders["llama"]), loading))
    assert module.larger_than_memory(str(tiny_folders["llama"]), dm.Loading(device="cpu", dtype="bfloat16")) is None
    assert module.larger_than_memory("owner/model", loading) is None
