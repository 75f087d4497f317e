"""Runs in the environment of llama.cpp: `python engines/chat_llama_cpp.py ORDER.json`. Questions asked of its server as a person would ask them.

The order holds `questions`, `new_tokens`, `models` (a file and whether its cache is `float32`, by name) and `out`, the file that is written: for each model what the server makes of every
question (`prompts`, `ids`), its greedy reply (`greedy`) and the settings that it samples by unasked (`settings`).
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import xllamacpp

SAMPLED_BY = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty")


def server(file: str, float32: bool) -> Any:
    """As it starts unasked, but for the length of a context and the one thread; with a cache in float32 where that is told."""
    params = xllamacpp.CommonParams()
    params.model.path = file
    if float32:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_ctx, params.n_parallel, params.verbosity = 512, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


def post(to: Any, path: str, asked: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(to.listening_address + path, json.dumps(asked).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        got: dict[str, Any] = json.loads(answer.read())
    return got


def asked(model: dict[str, Any], questions: list[str], new_tokens: int) -> dict[str, Any]:
    running = server(**model)
    talks = [[{"role": "user", "content": question}] for question in questions]
    prompts = [post(running, "/apply-template", {"messages": talk})["prompt"] for talk in talks]
    ids = [post(running, "/tokenize", {"content": prompt, "add_special": True, "parse_special": True})["tokens"] for prompt in prompts]
    greedy = [post(running, "/v1/chat/completions", {"messages": talk, "max_tokens": new_tokens, "temperature": 0}) for talk in talks]
    settings = post(running, "/completion", {"prompt": "", "n_predict": 1})["generation_settings"]
    return {
        "prompts": prompts, "ids": ids, "greedy": [said["choices"][0]["message"]["content"] for said in greedy],
        "settings": {name: round(settings[name], 3) for name in SAMPLED_BY},
    }  # fmt: skip


if __name__ == "__main__":
    order = json.loads(Path(sys.argv[1]).read_text())
    said = {name: asked(model, order["questions"], order["new_tokens"]) for name, model in order["models"].items()}
    Path(order["out"]).write_text(json.dumps(said), encoding="utf-8")
