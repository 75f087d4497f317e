"""An adapter folder as MODEL is, to the last logit, what PEFT computes: whatever it changes, and whether embedding and head are tied or not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import demeanor as dm
from demeanor.errors import ModelError
from demeanor.models.loading import read_for_training, save_whole

IDS = torch.arange(5, 14)[None]
ADDED = ["<one>", "<two>", "<three>"]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS.to(model.device)).logits


def peft_of(base: Path, tokens: int = 0, **config: Any) -> PeftModel:
    """A random adapter on the model in `base`, after tokens were added to it."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    if tokens:
        model.resize_token_embeddings(model.config.vocab_size + tokens, mean_resizing=False)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", init_lora_weights=False, **config))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save.default" in name or "trainable_tokens_delta" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return adapted.eval()


def saved(adapted: PeftModel, base: Path, folder: Path) -> Path:
    adapted.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    return folder


ATTENTION = {"llama": "q_proj", "qwen3": "q_proj", "gpt2": "c_attn"}
EMBEDDING = {"llama": "embed_tokens", "qwen3": "embed_tokens", "gpt2": "wte"}  # qwen3 and gpt2 tie it to the head
CHANGES: dict[str, Any] = {
    "attention": lambda attention, embedding: {"target_modules": [attention]},
    "head": lambda attention, embedding: {"target_modules": [attention, "lm_head"]},
    "embedding": lambda attention, embedding: {"target_modules": [attention, embedding]},
    "head and embedding": lambda attention, embedding: {"target_modules": ["lm_head", embedding]},
    "new embedding": lambda attention, embedding: {"target_modules": [attention], "modules_to_save": [embedding]},
    "new head": lambda attention, embedding: {"target_modules": [attention], "modules_to_save": ["lm_head"]},
    "both new": lambda attention, embedding: {"target_modules": [attention], "modules_to_save": [embedding, "lm_head"]},
    "some tokens": lambda attention, embedding: {"target_modules": [attention], "trainable_token_indices": {embedding: [6, 8]}},
    "tied tokens": lambda attention, embedding: {"target_modules": [attention, embedding], "ensure_weight_tying": True},
}


# PEFT saves one of embedding and head for added tokens, and not the other.
UNSAVED = {("llama", "head"), ("llama", "embedding"), ("llama", "tied tokens")}
CASES = [
    pytest.param(family, change, tokens, id=f"{family}, {change}, {tokens} added", marks=[] if family == "qwen3" else pytest.mark.slow)
    for family in ATTENTION
    for change in CHANGES
    for tokens in (0, 3)
    if not (tokens and (family, change) in UNSAVED)
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "change", "tokens"), CASES)
def test_merged_is_what_peft_computes(
    tiny_folders: Mapping[str, Path], tmp_path: Path, family: str, change: str, tokens: int
) -> None:
    base = tiny_folders[family]
    adapted = peft_of(base, tokens, **CHANGES[change](ATTENTION[family], EMBEDDING[family]))
    folder, wanted = saved(adapted, base, tmp_path / "adapter"), logits(adapted)
    as_peft_loads = AutoModelForCausalLM.from_pretrained(base)
    if tokens:
        as_peft_loads.resize_token_embeddings(as_peft_loads.config.vocab_size + tokens, mean_resizing=False)
    assert (logits(PeftModel.from_pretrained(as_peft_loads, folder)) - wanted).abs().max() < 1e-5  # the file holds all of it
    got = logits(read_for_training(str(folder), dm.Loading(device="cpu"))[0].eval())
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() < 1e-4 * wanted.std()
    save_whole(str(folder), tmp_path / "merged")
    again = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    assert (again - wanted).abs().max() < 1e-4 * wanted.std()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("saves", "lacks"), [("embed_tokens", "lm_head"), ("lm_head", "embed_tokens")])
def test_added_tokens_without_their_head_or_embedding_are_refused(
    tiny_folders: Mapping[str, Path], tmp_path: Path, saves: str, lacks: str
) -> None:
    base = tiny_folders["llama"]
    folder = saved(peft_of(base, 3, target_modules=["q_proj", saves]), base, tmp_path / "adapter")
    with pytest.raises(ModelError, match=rf"1203 tokens.*has 1200.*no (model\.)?{lacks}.*save_embedding_layers"):
        dm.load(folder, device="cpu")


@pytest.mark.filterwarnings("ignore")
def test_an_adapters_own_tokenizer_knows_the_tokens_that_it_brings(tiny_folders: Mapping[str, Path], tmp_path: Path) -> None:
    base = tiny_folders["qwen3"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(ADDED)
    adapted = peft_of(base, len(tokenizer) - 1200, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    folder = saved(adapted, base, tmp_path / "adapter")
    tokenizer.save_pretrained(folder)
    session = dm.load(folder, device="cpu")
    assert max(session.encode("<three>")) == len(tokenizer) - 1 >= 1200
    assert session.vocabulary == len(tokenizer)
    assert len(session.generate(["<one> hello"], 3)[0].ids) == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lost", ["lora_B", "lm_head"])
def test_a_file_that_lacks_a_tensor_of_the_adapter_is_refused(tiny_folders: Mapping[str, Path], tmp_path: Path, lost: str) -> None:
    base = tiny_folders["qwen3"]
    folder = saved(peft_of(base, target_modules=["q_proj"], modules_to_save=["lm_head"]), base, tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if lost not in name}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=lost):
        dm.load(folder, device="cpu")
