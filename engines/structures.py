"""The plugin of vLLM on tiny random models of other structures: whether a control does there what it does at run time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

import demeanor as dm
from demeanor.controls import Control, Part
from demeanor.models.loading import resolve

from .steering import Turns

TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"vocab_size": 1200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2, **TOKENS}
STRUCTURES: dict[str, PretrainedConfig] = {
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=1),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=32, tie_word_embeddings=True),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, num_key_value_heads=1, head_dim=32, num_experts=4, moe_intermediate_size=64, num_experts_per_tok=2),
    "phi3": Phi3Config(**SIZES, num_key_value_heads=1),
    "gpt2": GPT2Config(vocab_size=1200, n_embd=64, n_layer=3, n_head=2, **TOKENS),
}
QUESTIONS = ("how do i crack an egg ?", "what is 3 plus 4 ?", "hello")


def compare_structures(folder: Path, python: str) -> dict[str, Any]:
    """By structure and control, the largest difference of a log-probability to the control at run time, and how far the control moves any; or why vLLM ended."""
    return {name: _compared(folder / name, config, python) for name, config in STRUCTURES.items()}


def _compared(folder: Path, config: PretrainedConfig, python: str) -> dict[str, Any]:
    told = folder / "told.json"
    if not told.is_file():
        told.parent.mkdir(parents=True, exist_ok=True)
        told.write_text(json.dumps(_ask(folder, config, python)), encoding="utf-8")
    done: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    return done


def _ask(folder: Path, config: PretrainedConfig, python: str) -> dict[str, Any]:
    session = dm.load(_tiny(folder / "model", config), device="cpu")
    controls, prompts = _controls(session), [session.encode(question) for question in QUESTIONS]
    for name, control in controls.items():
        dm.save_control(control, folder / f"{name}.safetensors")
    untouched, wanted = _own(session, None, prompts), {name: _own(session, control, prompts) for name, control in controls.items()}
    order = folder / "order.json"
    order.write_text(json.dumps({"model": str(folder / "model"), "new_tokens": 2, "end": sorted(session.end_ids)}), encoding="utf-8")
    named = " ".join(f"{name}='{folder / name}.safetensors'" for name in controls)
    engine = Turns(python, order, {"DEMEANOR_CONTROLS": named, "VLLM_PLUGINS": "demeanor"})
    got, _ = engine.answers(folder / "answers.npz", prompts * len(controls), [name for name in controls for _ in prompts])
    engine.close()
    rows = dict(zip(controls, np.split(got["log_probs"], len(controls))))
    return {
        name: {"difference": float(np.abs(rows[name] - wanted[name]).max()), "moves": float(np.abs(wanted[name] - untouched).max())} for name in controls
    }


def _own(session: dm.Session, control: Control | None, prompts: list[list[int]]) -> np.ndarray[Any, Any]:
    with session.controlled(control) if control is not None else session.uncontrolled():
        return torch.cat(session.text_log_probs(prompts, [[0]] * len(prompts))).numpy()


def _tiny(folder: Path, config: PretrainedConfig) -> Path:
    """A random model with the tokenizer of the embedded one."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.08))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve("organism").where).save_pretrained(folder)
    return folder


def _controls(session: dm.Session) -> dict[str, Control]:
    """Two random directions taken out at every writer, and one added behind layer 1."""
    rng, layout = torch.Generator().manual_seed(0), session.layout
    basis = torch.linalg.qr(torch.randn(layout.d_model, 2, generator=rng))[0].T.contiguous()
    parts = {
        "ablate": Part(kind="ablate", vectors=basis, dose=1.0, scope=dm.Scope()),
        "add": Part(kind="add", vectors=5.0 * basis[:1], dose=0.8, scope=dm.Scope(site=dm.Site(1))),
    }
    return {name: Control(parts=(part,), layout=layout, model_name=session.name) for name, part in parts.items()}
