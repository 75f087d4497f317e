"""Runs in the environment of llama.cpp: `python engines/in_llama_cpp.py ORDER.json`. Full logits and greedy tokens of token ids, in one process.

The library is the one inside the package xllamacpp, called through its C interface (llama.h of the same build, 11063), since no package's own interface gives
control vectors. The order holds `prompts` (token ids), `new_tokens`, `end` (token ids) and `jobs`, each with `name`, `model`, and `vector` or
`lora`, files of llama.cpp's; results go to `out`/NAME.npz: log_probs [prompt, vocab], tokens [prompt, new token], -1 behind the end.
"""

from __future__ import annotations

import ctypes as c
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

POINTER, INT, UINT, FLOAT, BOOL = c.c_void_p, c.c_int32, c.c_uint32, c.c_float, c.c_bool
CONTEXT = 512


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class ModelParams(c.Structure):
    _fields_ = [
        *_fields(POINTER, "devices tensor_buft_overrides"), *_fields(INT, "n_gpu_layers split_mode load_mode lazy_mode main_gpu"),
        *_fields(POINTER, "tensor_split progress_callback progress_callback_user_data kv_overrides"),
        *_fields(BOOL, "vocab_only check_tensors use_extra_bufts no_host no_alloc load_mtp"),
    ]  # fmt: skip


class ContextParams(c.Structure):
    _fields_ = [
        *_fields(UINT, "n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max n_outputs_max_per_seq"),
        *_fields(INT, "n_threads n_threads_batch ctx_type rope_scaling_type pooling_type attention_type flash_attn_type"),
        *_fields(FLOAT, "rope_freq_base rope_freq_scale yarn_ext_factor yarn_attn_factor yarn_beta_fast yarn_beta_slow"),
        ("yarn_orig_ctx", UINT), ("defrag_thold", FLOAT), *_fields(POINTER, "cb_eval cb_eval_user_data"), *_fields(INT, "type_k type_v"),
        *_fields(POINTER, "abort_callback abort_callback_data"), *_fields(BOOL, "embeddings offload_kqv no_perf op_offload swa_full kv_unified"),
        ("samplers", POINTER), ("n_samplers", c.c_size_t), ("ctx_other", POINTER),
    ]  # fmt: skip


class Batch(c.Structure):
    _fields_ = [("n_tokens", INT), *_fields(POINTER, "token embd pos n_seq_id seq_id logits")]


def _library() -> Any:
    import xllamacpp

    library = c.CDLL(str(next(Path(xllamacpp.__path__[0]).glob("*.so"))))
    returned = {
        "llama_model_default_params": ModelParams, "llama_context_default_params": ContextParams, "llama_model_load_from_file": POINTER,
        "llama_init_from_model": POINTER, "llama_model_get_vocab": POINTER, "llama_get_memory": POINTER, "llama_batch_get_one": Batch,
        "llama_get_logits_ith": c.POINTER(FLOAT), "llama_adapter_lora_init": POINTER,
    }  # fmt: skip
    taken = {
        "llama_model_load_from_file": [c.c_char_p, ModelParams], "llama_init_from_model": [POINTER, ContextParams], "llama_model_get_vocab": [POINTER],
        "llama_vocab_n_tokens": [POINTER], "llama_model_n_embd": [POINTER], "llama_model_n_layer": [POINTER], "llama_get_memory": [POINTER],
        "llama_memory_clear": [POINTER, BOOL], "llama_batch_get_one": [c.POINTER(INT), INT], "llama_decode": [POINTER, Batch],
        "llama_get_logits_ith": [POINTER, INT], "llama_set_adapter_cvec": [POINTER, POINTER, c.c_size_t, INT, INT, INT],
        "llama_adapter_lora_init": [POINTER, c.c_char_p], "llama_set_adapters_lora": [POINTER, POINTER, c.c_size_t, POINTER],
        "llama_free": [POINTER], "llama_model_free": [POINTER],
    }  # fmt: skip
    for name, kind in returned.items():
        getattr(library, name).restype = kind
    for name, kinds in taken.items():
        getattr(library, name).argtypes = kinds
    context = library.llama_context_default_params()
    assert (context.n_batch, context.type_k, context.rope_freq_base) == (2048, 1, 0.0), "not the build whose structures these are"
    return library


class Engine:
    """A model of llama.cpp's in float32 throughout: cache and attention too, whose usual types are F16."""

    def __init__(self, library: Any, model: Path, cache: str = "f32") -> None:
        self.library = library
        self.model = library.llama_model_load_from_file(str(model).encode(), library.llama_model_default_params())
        assert self.model, f"llama.cpp did not load {model}"
        how = library.llama_context_default_params()
        how.n_ctx = how.n_batch = how.n_ubatch = CONTEXT
        how.n_threads = how.n_threads_batch = 1
        how.type_k = how.type_v = {"f32": 0, "f16": 1}[cache]
        how.flash_attn_type = 0
        self.context = library.llama_init_from_model(self.model, how)
        self.vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self.model))

    def logits(self, tokens: list[int]) -> np.ndarray[Any, Any]:
        """Of the next token [vocab], behind what was read before."""
        array = (INT * len(tokens))(*tokens)
        failed = self.library.llama_decode(self.context, self.library.llama_batch_get_one(array, len(tokens)))
        assert not failed, f"llama_decode gave {failed}"
        return np.ctypeslib.as_array(self.library.llama_get_logits_ith(self.context, -1), (self.vocabulary,)).copy()

    def forget(self) -> None:
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), True)

    def add_vector(self, file: Path) -> None:
        """A control vector, as `--control-vector` reads one: layer k at k - 1 of what is given, zeros elsewhere."""
        vectors = read_vectors(file)
        width, layers = self.library.llama_model_n_embd(self.model), self.library.llama_model_n_layer(self.model)
        data = np.zeros((layers - 1, width), np.float32)
        for layer, vector in vectors.items():
            data[layer - 1] = vector
        failed = self.library.llama_set_adapter_cvec(self.context, data.ctypes.data, data.size, width, 1, layers)
        assert not failed

    def add_lora(self, file: Path) -> None:
        adapter = self.library.llama_adapter_lora_init(self.model, str(file).encode())
        assert adapter, f"llama.cpp did not take {file}"
        failed = self.library.llama_set_adapters_lora(self.context, (POINTER * 1)(adapter), 1, (FLOAT * 1)(1.0))
        assert not failed

    def close(self) -> None:
        self.library.llama_free(self.context)
        self.library.llama_model_free(self.model)


def read_vectors(file: Path) -> dict[int, np.ndarray[Any, Any]]:
    from gguf import GGUFReader

    return {int(tensor.name.removeprefix("direction.")): np.array(tensor.data) for tensor in GGUFReader(file).tensors}


def run(library: Any, order: dict[str, Any], job: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    engine = Engine(library, Path(job["model"]), job.get("cache", "f32"))
    if "vector" in job:
        engine.add_vector(Path(job["vector"]))
    if "lora" in job:
        engine.add_lora(Path(job["lora"]))
    first, tokens = [], np.full((len(order["prompts"]), order["new_tokens"]), -1)
    for row, prompt in enumerate(order["prompts"]):
        engine.forget()
        logits = engine.logits(prompt).astype(np.float64)
        first.append(logits - np.logaddexp.reduce(logits))
        for place in range(order["new_tokens"]):
            token = int(logits.argmax())
            if token in order["end"]:
                break
            tokens[row, place] = token
            logits = engine.logits([token])
    engine.close()
    return {"log_probs": np.stack(first).astype(np.float32), "tokens": tokens}


if __name__ == "__main__":
    order = json.loads(Path(sys.argv[1]).read_text())
    library = _library()
    library.llama_backend_init()
    for job in order["jobs"]:
        np.savez(Path(order["out"]) / f"{job['name']}.npz", **run(library, order, job))
        print(job["name"], flush=True)
