"""A tiny random Llama as a GGUF file, as llama.cpp's converter lays it out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from demeanor.models.loading import resolve
from families import SIZES

gguf = pytest.importorskip("gguf", reason="GGUF files take the package gguf: pip install 'demeanor[gguf]'")

TEMPLATE = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
HEADS, KEY_HEADS = 4, 2
PACKED = "mlp.down_proj.weight"
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "embed_tokens": "token_embd", "norm": "output_norm",
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down", "ln_1": "attn_norm", "ln_2": "ffn_norm",
    "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm",
}  # fmt: skip


def tiny_llama(tied: bool = False) -> Any:
    """A random Llama whose widths Q8_0 can pack (blocks of 32 values), its down projections already rounded to it."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**SIZES, "hidden_size": 64, "intermediate_size": 96}, num_key_value_heads=2, tie_word_embeddings=tied))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.08))
            if name.endswith(PACKED):
                kind = gguf.GGMLQuantizationType.Q8_0
                parameter.copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(parameter.numpy(), kind), kind)))
    return model.eval()


def tiny_gpt2() -> Any:
    """A random GPT-2: its layers are stored with their inputs first, its head is the embedding, and its writers have biases."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=SIZES["vocab_size"], n_embd=64, n_layer=3, n_head=HEADS, n_positions=1024))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def stored_name(name: str) -> str:
    if name == "lm_head.weight":
        return "output.weight"
    *parts, kind = name.removeprefix("model.").removeprefix("transformer.").split(".")
    if parts[0] in ("layers", "h"):
        return f"blk.{parts[1]}.{NAMES['.'.join(parts[2:])]}.{kind}"
    return f"{NAMES['.'.join(parts)]}.{kind}"


def interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a query or key projection in the order in which llama.cpp rotates them."""
    return values.reshape(heads, 2, values.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)


def write_gguf(path: Path, model: Any, architecture: str = "llama", words_too: bool = True, **more: int) -> Path:
    """A model with the organism's tokenizer and a template of its own, as llama.cpp's converter lays it out."""
    writer, config = gguf.GGUFWriter(path, architecture), model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(512)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(HEADS)
    if architecture == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(KEY_HEADS)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    words = json.loads((Path(resolve("organism").where) / "tokenizer.json").read_text())
    special = {token["content"] for token in words["added_tokens"]}
    vocabulary = sorted(words["model"]["vocab"], key=words["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in special else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in words["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)
    if not words_too:
        writer.kv_data[0] = {key: value for key, value in writer.kv_data[0].items() if not key.startswith("tokenizer.")}
    for key, value in more.items():
        writer.add_uint16(key.replace("_", ".", 1), value)
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            values = np.ascontiguousarray(values.T)
        if "q_proj" in name or "k_proj" in name:
            values = interleaved(values, HEADS if "q_proj" in name else KEY_HEADS)
        if name.endswith(PACKED):
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(stored_name(name), gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
