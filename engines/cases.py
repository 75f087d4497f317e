"""Every pair that is compared: a form of a control in an engine, and the control at run time that it is to equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Where = Literal["transformers", "vLLM", "llama.cpp"]
UNTOUCHED = "untouched"
BY_TURNS = "ablate, and half of it, by turns"
FLOAT32, BFLOAT16, PACKED = "float32", "bfloat16", "packed (Q4_1, Q8_0)"
BOUNDS = {FLOAT32: 2e-4, BFLOAT16: 1.0, PACKED: 1.5}


@dataclass(frozen=True)
class Case:
    """name: of its answers. control: what it is compared with. form: what the engine was given. numbers: what it computes with. files: parts of the job."""

    name: str
    where: Where
    control: str
    form: str
    numbers: str
    files: dict[str, str]

    def job(self, folder: str) -> dict[str, Any]:
        """As the engine reads it."""
        dtype = {"dtype": "bfloat16" if self.numbers == BFLOAT16 else "float32"} if self.where == "vLLM" else {}
        return {"name": self.name, **dtype, **{key: file if file.startswith("/") else f"{folder}/{file}" for key, file in self.files.items()}}


def cases(packed: str) -> tuple[Case, ...]:
    """packed: the model's own GGUF file."""
    spared = "ablate, embedding spared"
    return (
        Case("transformers-plain", "transformers", UNTOUCHED, "the model's folder", FLOAT32, {"model": "plain"}),
        Case("vllm-plain", "vLLM", UNTOUCHED, "the model's folder", FLOAT32, {"model": "plain"}),
        Case("vllm-plain-bf16", "vLLM", UNTOUCHED, "the model's folder", BFLOAT16, {"model": "plain"}),
        Case("llama-plain", "llama.cpp", UNTOUCHED, "the model as GGUF, F32", FLOAT32, {"model": "plain.gguf"}),
        Case("llama-packed", "llama.cpp", UNTOUCHED, "the model's own GGUF", PACKED, {"model": packed}),
        Case("peft-lora", "transformers", "ablate", "LoRA through PEFT", FLOAT32, {"model": "plain", "lora": "lora"}),
        Case("transformers-baked", "transformers", "ablate", "baked folder", FLOAT32, {"model": "baked"}),
        Case("vllm-lora", "vLLM", "ablate", "LoRA", FLOAT32, {"model": "plain", "lora": "lora"}),
        Case("vllm-lora-two", "vLLM", BY_TURNS, "two LoRA, by request", FLOAT32, {"model": "plain", "lora": "lora", "lora_b": "lora-half"}),
        Case("vllm-baked", "vLLM", "ablate", "baked folder", FLOAT32, {"model": "baked"}),
        Case("vllm-baked-bf16", "vLLM", "ablate", "baked folder", BFLOAT16, {"model": "baked"}),
        Case("llama-baked", "llama.cpp", "ablate", "whole GGUF, all F32", FLOAT32, {"model": "baked.gguf"}),
        Case("llama-baked-packed", "llama.cpp", "ablate", "whole GGUF of the packed one, edited tensors F32", PACKED, {"model": "baked-packed.gguf"}),
        Case("llama-baked-packed-f16", "llama.cpp", "ablate", "whole GGUF of the packed one, edited tensors F16", PACKED, {"model": "baked-packed-f16.gguf"}),
        Case("llama-lora", "llama.cpp", spared, "LoRA in GGUF, on F32", FLOAT32, {"model": "plain.gguf", "lora": "lora.gguf"}),
        Case("llama-lora-packed", "llama.cpp", spared, "LoRA in GGUF, on the model's own", PACKED, {"model": packed, "lora": "lora.gguf"}),
        Case("llama-vector", "llama.cpp", "add", "control vector, on F32", FLOAT32, {"model": "plain.gguf", "vector": "vector.gguf"}),
        Case("llama-vector-packed", "llama.cpp", "add", "control vector, on the model's own", PACKED, {"model": packed, "vector": "vector.gguf"}),
    )
