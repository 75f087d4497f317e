"""Runs in the environment of vLLM: `python engines/in_vllm.py ORDER.json NAME`. One job of the order, in a process of its own.

A job has `name`, `model` (a folder), `dtype`, and `lora` (a folder of PEFT's) where there is one, `lora_b` for every second prompt where there are two; results go to `out`/NAME.npz as those of llama.cpp do.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}

import numpy as np
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

LONGEST, AT_ONCE = 256, 20


def engine(job: dict[str, Any], **more: Any) -> LLM:
    """One that computes plainly: no compilation. Values of earlier prompts are kept from 128 tokens on, which is longer than those of the comparison."""
    return LLM(
        job["model"], dtype=job["dtype"], enforce_eager=True, max_model_len=LONGEST, max_num_seqs=AT_ONCE, max_logprobs=-1, enable_prefix_caching=True,
        disable_log_stats=True, seed=0, enable_lora="lora" in job, **({"max_lora_rank": 8, "max_loras": 2} if "lora" in job else {}), **more,
    )  # fmt: skip


def log_probs(outputs: list[Any], vocabulary: int) -> np.ndarray[Any, Any]:
    """Of the first new token [prompt, vocab]."""
    rows = np.full((len(outputs), vocabulary), np.nan, np.float32)
    for row, output in zip(rows, outputs):
        flat = output.outputs[0].logprobs
        row[np.asarray(flat.token_ids)] = flat.logprobs
    assert np.isfinite(rows).all()
    return rows


def answers(llm: LLM, prompts: list[list[int]], new_tokens: int, end: list[int], **how: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Log-probabilities of the next token and greedy tokens, -1 behind the end."""
    asked: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
    extra = how.pop("extra_args", [None] * len(prompts))
    plain = {"temperature": 0.0, "detokenize": False, "ignore_eos": True, "stop_token_ids": end}
    first = llm.generate(asked, [SamplingParams(**plain, max_tokens=1, logprobs=-1, flat_logprobs=True, extra_args=one) for one in extra], use_tqdm=False, **how)
    longer = llm.generate(asked, [SamplingParams(**plain, max_tokens=new_tokens, extra_args=one) for one in extra], use_tqdm=False, **how)
    tokens = np.full((len(prompts), new_tokens), -1)
    for row, output in zip(tokens, longer):
        said = [token for token in output.outputs[0].token_ids if token not in end]
        row[: len(said)] = said
    return {"log_probs": log_probs(first, llm.model_config.get_vocab_size()), "tokens": tokens}


def main() -> None:
    order = json.loads(Path(sys.argv[1]).read_text())
    job = next(job for job in order["jobs"] if job["name"] == sys.argv[2])
    adapters = [LoRARequest(name, number, job[name]) for number, name in enumerate(("lora", "lora_b"), start=1) if name in job]
    how = {"lora_request": [adapters[row % len(adapters)] for row in range(len(order["prompts"]))]} if adapters else {}
    np.savez(Path(order["out"]) / f"{job['name']}.npz", **answers(engine(job), order["prompts"], order["new_tokens"], order["end"], **how))


if __name__ == "__main__":
    main()
