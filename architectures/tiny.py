"""A tiny configuration of any model type: its defaults with every size made small by the name of the field.

Fields that say what kind a layer is keep one layer of every kind that the defaults name.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

VOCAB, D_MODEL, LAYERS, HEADS, HEAD_DIM = 1200, 64, 4, 4, 16

# Patterns of the names of fields, the first that fits whole gives the size.
SIZES: tuple[tuple[str, Any], ...] = (
    ("vocab_size|unpadded_vocab_size|vocab_size_per_layer_input|decoder_vocab_size|shape_vocab_size|pronunciation_vocab_size|audio_vocab_size", VOCAB),
    ("bos_token_id|decoder_start_token_id", 1),
    ("eos_token_id|forced_eos_token_id|eod_token_id|sep_token_id|forced_bos_token_id", 2),
    ("pad_token_id|cls_token_id|suppress_tokens|begin_suppress_tokens", 0),
    ("image_token_(id|index)", 7), ("video_token_(id|index)", 8), ("audio_token_(id|index)", 9),
    ("(boi|eoi|boa|eoa|vision_start|vision_end|image_start|image_end)_token_(id|index)", 10),
    ("hidden_size|n_embd|d_model|emb_dim|embedding_dim|embedding_size|word_embed_proj_dim|input_embedding_size|output_embedding_size"
     "|lru_width|backbone_hidden_size|text_hidden_size|adapter_in_dim|adapter_out_dim|adapter_input_size|qformer_hidden_size|encoder_hidden_size", D_MODEL),
    ("intermediate_size|n_inner|ffn_dim|(en|de)coder_ffn_dim|dim_ff|dff|d_inner|feed_forward_size|ffn_hidden_size|dense_intermediate_size"
     "|intermediate_size_mlp|shared_intermediate_size|mlp_dim|d_ff", 96),
    ("moe_intermediate_size|expert_ffn_hidden_size|(moe_)?shared_experts?_intermediate_size|shared_expert_intermediate_size|vision_intermediate_size", 32),
    ("num_hidden_layers|n_layers?|(num_)?(en|de)coder_layers|num_layers|num_blocks|depth", LAYERS),
    ("num_attention_heads|n_heads?|(num_)?(en|de)coder_attention_heads|num_heads|attention_heads|swa_num_attention_heads|num_query_groups"
     "|conf_num_attention_heads", HEADS),
    ("num_key_value_heads|num_kv_heads|kv_n_heads|swa_num_key_value_heads|num_global_key_value_heads", 2),
    ("head_dim|global_head_dim|swa_head_dim|dim_head|kv_channels|attention_head_size|d_head|d_kv|v_head_dim|qk_nope_head_dim|index_head_dim"
     "|linear_head_dim|linear_(key|value)_head_dim|mamba_d_head|mamba_head_dim|head_size", HEAD_DIM),
    ("qk_rope_head_dim|rotary_dim", 8), ("qk_head_dim", 24),
    ("(q|kv|o)_lora_rank|gated_norm_rank|laurel_rank|hc_lowrank|loop_gate_rank|router_hidden_size|adapter_rank|d_rel|altup_rank", 16),
    ("num_experts|num_local_experts|n_routed_experts|moe_num_experts", 4),
    ("num_experts_per_tok(en)?|moe_topk|moe_top_k|moe_k", 2),
    ("n_group|num_expert_group", 2), ("topk_group", 1), ("zero_expert_num", 2),
    ("index_n_heads|linear_num_heads|linear_num_value_heads|mamba_num_heads|mamba_n_heads", 8), ("linear_num_key_heads", 4),
    ("index_topk|index_topk_blocks", 4), ("index_block_size|attention_chunk_size|block_size", 16),
    ("state_size|ssm_state_size|mamba_d_state|time_step_rank|mamba_dt_rank", 8),
    ("chunk_size|mamba_chunk_size", 8), ("n_groups|mamba_n_groups|mamba_ngroups|o_groups", 2),
    ("mamba_d_ssm|attention_hidden_size", 128),
    ("sliding_window(_size)?|window_size|local_attention|attention_window_size|keep_window_size", 16),
    ("max_position_embeddings|n_positions|n_ctx|max_seq_len|max_target_positions|context_length|rel_extent|model_max_length"
     "|max_source_positions", 256),
    ("first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1), ("moe_layer_end_index", LAYERS - 1),
    ("n_input_layers|n_output_layers|num_layers_per_stack", 2), ("n_recurrent_layers", 2),
    ("loop_layer_index_start", 1), ("loop_layer_index_end", 3), ("n_layers_per_attn_res_block", 2), ("layer_group_size", 2),
    ("attn_layer_period", 2), ("attn_layer_offset", 1), ("global_attn_every_n_layers|no_rope_layer_interval|_?sliding_window_pattern", 2),
    ("num_kv_shared_layers", 0), ("hidden_size_per_layer_input", 16),
    ("ple_embed_dim", 32), ("ngram_vocab_size_base", 64), ("heads_per_ngram", 2), ("split_ngram_parts", 2),
    ("image_size", 28), ("patch_size", 14), ("mm_tokens_per_image", 4), ("max_window_layers", 2), ("query_pre_attn_scalar", 16),
    ("mamba_headdim", 16), ("attention_head_dim", 32), ("pronunciation_embed_dim|shape_embed_dim", 32), ("num_mem_blocks", 1),
    ("lsh_attn_chunk_length|local_attn_chunk_length", 8), ("compress_rates", None),
)  # fmt: skip
OF_LAYERS = re.compile(r"(.*layer.*_types?|layers_block_type|indexer_types|attn_layers|attention_layers|layer_rope_theta|num_attention_heads_per_layer|mlp_layer_types|no_rope_layers|activation_sparsity_pattern|intermediate_size)")


def tiny_config(model_type: str, **changes: Any) -> PretrainedConfig:
    """The tiny configuration of a type; `changes` are fields that win over what the names give."""
    cls = CONFIG_MAPPING[model_type]
    return cls(**_merged(_merged(_small(cls), OVERRIDES.get(model_type, {})), changes))


def tiny_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A random model, by its causal class or, where it has none, by that of images and text. Gains, biases and writers are all far from the
    values at which mistakes would cancel."""
    torch.manual_seed(seed)
    causal = type(config) in AutoModelForCausalLM._model_mapping and config.model_type not in NOT_CAUSAL
    auto = AutoModelForCausalLM if causal else AutoModelForImageTextToText
    model: PreTrainedModel = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and not re.search(r"A_log|dt_bias", name):
                parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.08))
    return model


def _small(cls: type[PretrainedConfig]) -> dict[str, Any]:
    """The fields of a class of configurations that are to differ from its defaults."""
    taken = inspect.signature(cls.__init__).parameters
    try:
        default = cls()
        values = {name: _value(default, name, parameter.default) for name, parameter in taken.items()}
    except (ValueError, TypeError):  # defaults that do not go together
        values = {name: parameter.default for name, parameter in taken.items() if parameter.default is not inspect.Parameter.empty}
    parts = {**getattr(cls, "sub_configs", {})}
    small: dict[str, Any] = {}
    for name, value in values.items():
        if name in parts or isinstance(value, PretrainedConfig):
            part = type(value) if isinstance(value, PretrainedConfig) else parts[name]
            if hasattr(part, "model_type") and isinstance(value, PretrainedConfig):
                small[name] = {**_small(part), **({"model_type": part.model_type} if part.model_type else {})}
        elif isinstance(value, (list, tuple)) and OF_LAYERS.fullmatch(name) and value:
            small[name] = _layers(list(value)) if name != "intermediate_size" else [96] * LAYERS
        elif isinstance(value, int) and not isinstance(value, bool):
            size = next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), value)
            if size != value:
                small[name] = size
    if "kv_lora_rank" in taken and "num_key_value_heads" in taken:  # latent attention has as many keys as queries
        small["num_key_value_heads"] = HEADS
    if "is_decoder" in taken:
        small["is_decoder"] = True
    return small


def _merged(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The fields with others in their place, those of parts of the configuration one by one."""
    merged = dict(fields)
    for name, value in changes.items():
        within = isinstance(value, dict) and isinstance(fields.get(name), dict) and name.endswith("_config")
        merged[name] = _merged(fields[name], value) if within else value
    return merged


def _value(config: PretrainedConfig, name: str, default: Any) -> Any:
    """A field of a configuration, or the default of one that differs from layer to layer."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # transformers' own, for a field that has no one value
        return default


def _layers(kinds: list[Any]) -> list[Any]:
    """As many layers as tiny models have, of every kind that there is."""
    if isinstance(kinds[0], (list, dict)):
        return kinds[:LAYERS]
    distinct = list(dict.fromkeys(kinds))
    return (distinct * LAYERS)[:LAYERS]


NOT_CAUSAL = ("mllama",)  # their causal class saves the text's configuration, which no automatic class reads; checkpoints hold the whole model

_KINDS = ("full_attention", "sliding_attention")
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8, "indexer_compress_ratio": 2}

# What the defaults of a type leave out, or what goes together only in other numbers.
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": {kind: {**_ROPE, "mrope_section": [4, 2, 2]} for kind in _KINDS}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {"num_hidden_layers": 6, "layer_types": None},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    **{name: {"text_config": {"rope_parameters": {**_ROPE, "mrope_section": [4, 2, 2]}}} for name in ("glm46v", "glm4v", "qwen2_5_vl", "qwen2_vl")},
    "glm4v_moe": {"text_config": {"rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}}},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "inkling2_loop_text": {"num_hidden_layers": 6, "loop_layer_index_start": 2, "loop_layer_index_end": 4, "layer_types": None},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "longcat_flash": {"head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "qwen4_exp_text": _INDEXER,
    "qwen4_exp": {"text_config": _INDEXER},
    "reformer": {"is_decoder": True, "axial_pos_shape": [16, 16], "axial_pos_embds_dim": [32, 32]},
    "xmod": {"default_language": "en_XX"},
    "xlstm": {"qk_dim_factor": 1.0},
    "zaya": {"num_experts_per_tok": 1},
}
