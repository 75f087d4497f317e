"""What a model has no room for or no number for is told or fitted in: pads, positions, dtypes, damaged configurations, modes of autograd."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import demeanor as dm
from demeanor.errors import DataError, DemeanorError, ModelError
from demeanor.models.loading import read_for_training
from demeanor.models.texts import pad_of
from demeanor.selfcontrol.branches import branched
from making import PROMPTS

pytestmark = pytest.mark.slow


@pytest.fixture
def llama(tiny_folders: Mapping[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folders["llama"], tmp_path / "source"))


def configured(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


# -- pads -----------------------------------------------------------------------------------------


def test_a_padding_token_that_the_model_does_not_know_is_replaced(tiny: Mapping[str, dm.Session], llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    assert tokenizer.pad_token_id >= 1200
    tokenizer.save_pretrained(llama)
    session, plain = dm.load(llama, device="cpu"), tiny["llama"]
    assert session.pad_id < 1200
    assert torch.allclose(session.logits(PROMPTS), plain.logits(PROMPTS), atol=1e-5)
    assert [reply.ids for reply in session.generate(PROMPTS, 4)] == [reply.ids for reply in plain.generate(PROMPTS, 4)]
    assert read_for_training(str(llama), dm.Loading(device="cpu"))[1].pad_token_id < 1200


@pytest.mark.parametrize(("pad", "end", "known", "wanted"), [(3, 2, 10, 3), (10, 2, 10, 2), (None, 2, 10, 2), (99, 98, 10, 0), (-1, None, 10, 0), (None, None, 10, 0)])
def test_the_pad_is_one_that_the_model_knows(pad: int | None, end: int | None, known: int, wanted: int) -> None:
    class Named:
        pad_token_id, eos_token_id = pad, end

    assert pad_of(Named(), known) == wanted  # type: ignore[arg-type]


# -- positions ------------------------------------------------------------------------------------


@pytest.fixture
def short(tiny_folders: Mapping[str, Path], tmp_path: Path) -> dm.Session:
    """GPT-2 with a table of few positions, and no token that ends a reply."""
    folder = Path(shutil.copytree(tiny_folders["gpt2"], tmp_path / "short"))
    name = "transformer.wpe.weight"
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: tensors[name][:40].clone()}, folder / "model.safetensors", {"format": "pt"})
    session = dm.load(configured(folder, n_positions=40), device="cpu")
    session.end_ids = frozenset()
    session._greedy.generation_config.eos_token_id = None
    return session


def test_replies_end_where_the_positions_end(short: dm.Session, caplog: pytest.LogCaptureFixture) -> None:
    lengths = [len(short.encode(prompt)) for prompt in PROMPTS]
    assert len(set(lengths)) == len(PROMPTS)
    with caplog.at_level("WARNING", "demeanor"):
        together = short.generate(PROMPTS, 30)
    assert [len(reply.ids) for reply in together] == [min(30, 40 - length) for length in lengths]
    assert caplog.text.count("takes 40 tokens, prompt and reply together") == 1
    assert [reply.ids for reply in together] == [short.generate([prompt], 30)[0].ids for prompt in PROMPTS]  # whoever else is asked


def test_branches_end_where_the_positions_end(short: dm.Session) -> None:
    prompts = [short.encode(prompt) for prompt in PROMPTS]
    for ids, (plain, other) in zip(prompts, branched(short, prompts, branches=2, most=30), strict=True):
        assert len(plain) == len(other) == min(30, 40 - len(ids))
        assert plain == short.continue_from([ids], 30)[0]


def test_a_reply_that_is_given_and_too_long_is_told(short: dm.Session) -> None:
    with pytest.raises(DataError, match="takes fewer than 40; shorten it"):
        short.reply_log_probs([PROMPTS[0]], [[5] * 60])
    with pytest.raises(DataError, match="takes fewer than 40; shorten it"):
        short.logits([PROMPTS[0]], after=[5] * 60)
    with pytest.raises(DataError, match="takes fewer than 40; shorten it"):
        short.capture([PROMPTS[0]], [dm.Site(0)], after=[5] * 60)
    with pytest.raises(DataError, match="takes fewer than 40; shorten it"):
        short.generate(["hello " * 60])


# -- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "lm_head.weight"])
def test_values_that_overflow_are_not_called_damage(llama: Path, name: str) -> None:
    tensors = {key: tensor.half() for key, tensor in load_file(llama / "model.safetensors").items()}
    tensors[name] = tensors[name] / tensors[name].abs().max() * 6e4
    save_file(tensors, llama / "model.safetensors", {"format": "pt"})
    configured(llama, dtype="float16")
    with pytest.raises(ModelError, match=r"all weights are finite.*overflows float16; use --dtype bfloat16"):
        dm.load(llama, device="cpu")
    dm.load(llama, device="cpu", dtype="bfloat16")


def test_weights_that_a_narrow_dtype_cannot_hold_are_told(llama: Path) -> None:
    tensors = load_file(llama / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1e6
    save_file(tensors, llama / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.norm\.weight .* float16.*--dtype bfloat16"):
        dm.load(llama, device="cpu", dtype="float16")


# -- configurations -------------------------------------------------------------------------------

DAMAGE: dict[str, Any] = {
    "num_attention_heads": [0, -1, "four", None, 3],
    "num_key_value_heads": [0, -2, 3, "x"],
    "hidden_size": [0, -5, 47, "wide", None],
    "num_hidden_layers": [0, -1, "many", 2.5],
    "vocab_size": [0, -1, 7, None],
    "hidden_act": ["nothing", None, 5],
    "rms_norm_eps": ["small", None],
    "rope_parameters": [5, {"rope_type": "nothing"}, {"rope_theta": "x", "rope_type": "default"}],
    "max_position_embeddings": ["x", None],
    "pad_token_id": [99999, "x"],
    "model_type": ["nothing", 5, None, "vit"],
    "dtype": ["float7", 5],
    "quantization_config": [5, {"quant_method": "nothing"}],
}


def in_a_sentence_or_well(folder: Path) -> None:
    """The model works, or an error of ours says in one line why not."""
    told = ""
    try:
        dm.load(folder, device="cpu").logits(["hello"])
    except DemeanorError as error:
        told = str(error)
    assert "\n" not in told


@pytest.mark.slow
@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in DAMAGE.items() for value in values])
def test_a_damaged_configuration_is_told_in_a_sentence_or_does_no_harm(llama: Path, field: str, value: Any) -> None:
    configured(llama, **{field: value})
    in_a_sentence_or_well(llama)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"])
@pytest.mark.parametrize("text", ["{", "[]", "5", "[" * 100_000, '{"a":' * 100_000, "", '{"model": {"type": "nothing"}}', "\udcff"])
def test_a_damaged_file_is_told_in_a_sentence_or_does_no_harm(llama: Path, file: str, text: str) -> None:
    (llama / file).write_text(text, encoding="utf-8", errors="surrogateescape")
    in_a_sentence_or_well(llama)


# -- modes of autograd ----------------------------------------------------------------------------


class SwitchedOff(AbstractContextManager[None]):
    """Gradients switched off for good, as a notebook does it; on again at the end."""

    def __enter__(self) -> None:
        torch.set_grad_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch.set_grad_enabled(True)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, SwitchedOff])
def test_a_model_is_proven_whatever_the_mode_of_autograd(tiny: Mapping[str, dm.Session], llama: Path, mode: Any) -> None:
    with mode():
        session = dm.load(llama, device="cpu")
        again = dm.load(session.model, tokenizer=session.tokenizer)
        assert torch.is_grad_enabled() is False
    assert session.layout == again.layout == tiny["llama"].layout
    assert not any(weight.is_inference() for weight in [*session.model.parameters(), *session.model.buffers()])
    ids = torch.arange(5, 9)[None]
    inputs = session.model.get_input_embeddings()(ids).detach().requires_grad_()
    session.model(inputs_embeds=inputs).logits.sum().backward()
    assert inputs.grad is not None


def test_a_model_that_was_made_without_autograd_is_told(tiny: Mapping[str, dm.Session], llama: Path) -> None:
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(llama))
    with pytest.raises(DataError, match=r"inside torch\.inference_mode"):
        dm.load(model, tokenizer=tiny["llama"].tokenizer)
