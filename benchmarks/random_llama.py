"""A random Llama in bf16 on disk, some layers a shard, for benchmarks that work on files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


def shapes(d_model: int) -> dict[str, tuple[int, int]]:
    """[out, in] of the weights of a layer, whose MLP is four times as wide as the stream."""
    inner = 4 * d_model
    return {
        **{f"self_attn.{name}_proj": (d_model, d_model) for name in "qkvo"},
        "mlp.gate_proj": (inner, d_model), "mlp.up_proj": (inner, d_model), "mlp.down_proj": (d_model, inner),
    }  # fmt: skip


def save(folder: Path, layers: int, d_model: int, words: int, per_shard: int, taken: Callable[[tuple[int, int]], Tensor]) -> int:
    """Write the model into the new folder; returns the bytes of its tensors. taken: the numbers of the next weight, bf16."""
    folder.mkdir()
    places: dict[str, str] = {}

    def shard(tensors: dict[str, Tensor]) -> int:
        name = f"model-{len(set(places.values())):05d}.safetensors"
        save_file(tensors, folder / name, {"format": "pt"})
        places.update(dict.fromkeys(tensors, name))
        return sum(tensor.nbytes for tensor in tensors.values())

    ones = torch.ones(d_model, dtype=torch.bfloat16)
    size = shard({"model.embed_tokens.weight": taken((words, d_model)), "lm_head.weight": taken((words, d_model)), "model.norm.weight": ones})
    for first in range(0, layers, per_shard):
        tensors: dict[str, Tensor] = {}
        for layer in range(first, min(first + per_shard, layers)):
            tensors |= {f"model.layers.{layer}.{name}.weight": taken(shape) for name, shape in shapes(d_model).items()}
            tensors |= {f"model.layers.{layer}.{norm}_layernorm.weight": ones.clone() for norm in ("input", "post_attention")}
        size += shard(tensors)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": places}))
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": d_model, "intermediate_size": 4 * d_model, "num_hidden_layers": layers,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": words, "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return size
