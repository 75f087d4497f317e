"""A tiny random Llama as a GGUF file, as llama.cpp's converter lays it out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from demeanor.io.gguf_codes import BLOCKS, Field
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


def tiny_llama(tied: bool = False, width: int = 64, inner: int = 96) -> Any:
    """A random Llama whose widths Q8_0 can pack (blocks of 32 values), its down projections already rounded to it."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**SIZES, "hidden_size": width, "intermediate_size": inner}, num_key_value_heads=2, tie_word_embeddings=tied))
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


def packed(values: np.ndarray, kind: str) -> np.ndarray:
    """Rows in the blocks of a type, uint8. The package gguf packs no K types; these get the scales that span what they hold, and the nearest codes."""
    if not kind.endswith("_K"):
        return gguf.quantize(values, gguf.GGMLQuantizationType[kind])
    form = BLOCKS[kind]
    rows = with_scales(np.zeros((values.size // 256, form.size), np.uint8), values.reshape(-1, 256), kind).reshape(len(values), -1)
    common = gguf.dequantize(form.with_codes(rows, np.full_like(values, form.zero)), gguf.GGMLQuantizationType[kind])
    scale = form.scale(rows)
    codes = np.rint((values - common) / np.where(scale == 0, 1, scale)) + form.zero
    return form.with_codes(rows, codes.clip(0, len(form.levels) - 1))


def with_scales(blocks: np.ndarray, values: np.ndarray, kind: str) -> np.ndarray:
    form = BLOCKS[kind]
    groups = values.reshape(len(values), 8 if kind in ("Q4_K", "Q5_K") else 16, -1)
    low = np.minimum(groups.min(2), 0)
    scales = np.abs(groups).max(2) / form.levels.max() if form.zero else (groups.max(2) - low) / form.levels.max()
    largest = {"Q2_K": 15, "Q3_K": 31, "Q6_K": 127}.get(kind, 63)
    d, d_low = scales.max(1, keepdims=True) / largest, np.maximum(-low.min(1, keepdims=True), 1e-6) / largest
    places, lows = np.rint(scales / d).astype(np.uint8), np.rint(-low / d_low).astype(np.uint8)
    if kind == "Q6_K":
        blocks[:, 192:208], blocks[:, 208:] = places, halves(d)
    elif kind == "Q3_K":
        blocks[:, 108:] = halves(d)
        Field(96, 8, 4, 8).write(blocks, places + 32)
        Field(104, 4, 2, 4).write(blocks, (places + 32) >> 4)
    elif kind == "Q2_K":
        blocks[:, :16], blocks[:, 80:82], blocks[:, 82:] = places | lows << 4, halves(d), halves(d_low)
    else:
        blocks[:, :2], blocks[:, 2:4], blocks[:, 4:16] = halves(d), halves(d_low), six_bits(places, lows)
    return blocks


def halves(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).view(np.uint8)


def six_bits(scales: np.ndarray, lows: np.ndarray) -> np.ndarray:
    """As Q4_K and Q5_K hold eight of each: the first four in a byte of their own, whose two highest bits are those of the last four."""
    first = [values[:, :4] | (values[:, 4:] >> 4 << 6) for values in (scales, lows)]
    return np.concatenate([*first, (scales[:, 4:] & 15) | (lows[:, 4:] << 4)], axis=1)


def write_gguf(path: Path, model: Any, architecture: str = "llama", words_too: bool = True, kinds: dict[str, str] | None = None, **more: int) -> Path:
    """A model with the organism's tokenizer and a template of its own, as llama.cpp's converter lays it out.

    kinds: types of tensors, by how the names of their parameters end; the down projections alone are in Q8_0 unless it is given.
    """
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
        kind = next((kind for end, kind in ({PACKED: "Q8_0"} if kinds is None else kinds).items() if name.endswith(end)), None)
        if kind is not None:
            writer.add_tensor(stored_name(name), packed(values, kind), raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(stored_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
