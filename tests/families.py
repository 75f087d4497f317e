"""Tiny random models of every proven family. Apart from `conftest.py`, which whoever starts the workers reads too, and quickly."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from demeanor.models.loading import resolve

torch.set_num_threads(1)  # tiny tensors: several threads only wait for each other
VOCAB = 1200  # of the organism's tokenizer, which the tiny models borrow
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, **TOKENS}
HEADS = {"num_key_value_heads": 2, "head_dim": 12}
EXPERTS = {"num_experts_per_tok": 2}
FALCON = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}

# Two of each where a family has two shapes. Square writers (GPT-2's, and one expert's) would hide a mistaken axis.
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
    "gemma2": Gemma2Config(**SIZES, **HEADS, sliding_window=16),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "gpt_neox_sequential": GPTNeoXConfig(**SIZES, use_parallel_residual=False),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, **HEADS, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, **HEADS, sliding_window=16),
    "gemma": GemmaConfig(**SIZES, **HEADS),
    "gemma3": Gemma3TextConfig(**SIZES, **HEADS, sliding_window=16),
    "gemma3_with_vision": Gemma3Config(text_config={**SIZES, **HEADS, "sliding_window": 16}, vision_config=VISION, mm_tokens_per_image=4),
    "phi3": Phi3Config(**SIZES, num_key_value_heads=2),
    "olmo2": Olmo2Config(**SIZES, num_key_value_heads=2),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=48, n_layer=3, n_head=4, n_inner=48, **TOKENS),
    "falcon": FalconConfig(**FALCON, ffn_hidden_size=80),
    "falcon_new": FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "falcon_sequential": FalconConfig(**FALCON, parallel_attn=False, alibi=True, bias=True, multi_query=False),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **HEADS, **EXPERTS, num_experts=4, moe_intermediate_size=48),
    "gpt_oss": GptOssConfig(**SIZES, **HEADS, **EXPERTS, num_local_experts=4, sliding_window=16),
    "granite": GraniteConfig(**SIZES, num_key_value_heads=2, embedding_multiplier=12.0, residual_multiplier=0.22),
}


SLOW = set(FAMILIES) - {"gemma2"}  # of this one the fast lane makes sure: it has a post-norm with a scale, a window and a tied head


def tiny_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model whose gains, biases and writers are all far from the values at which mistakes would cancel."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.08))
    return model.to(dtype)


def save_tiny(folder: Path, family: str, seed: int = 0, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> Path:
    """A tiny model as a folder, with a tokenizer; `shard` is the largest shard's size."""
    tiny_model(family, seed, dtype).save_pretrained(folder, max_shard_size=shard)
    AutoTokenizer.from_pretrained(resolve("organism")[0]).save_pretrained(folder)
    return folder
