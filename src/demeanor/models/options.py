"""What can be told about loading a model, as one frozen value that every verb shares."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator

from ..io.plan import BasePlan

REPLY_TOKENS = 48
Dtype = Literal["float32", "float16", "bfloat16", "float64"]
Quantized = Literal["4bit", "8bit"]
# The arguments of `apply_chat_template` that say what comes back, or in what form.
TEMPLATE_OUTPUT = frozenset({
    "conversation", "messages", "add_generation_prompt", "continue_final_message", "tokenize", "tokenizer_kwargs", "padding", "truncation", "max_length",
    "return_tensors", "return_dict", "return_assistant_tokens_mask", "sanitize_control_tokens",
})  # fmt: skip


class Loading(BasePlan):
    """How a model is loaded and asked; the descriptions of the fields are their help texts."""

    device: str | None = Field(default=None, description="device (cpu, cuda, cuda:1, ...); the GPU where there is one")
    device_map: str | dict[str, int | str] | None = Field(
        default=None, description="placement of the model's parts as accelerate takes it (auto, balanced, ...), instead of a device"
    )
    dtype: Dtype | None = Field(default=None, description="number type of the weights; as stored unless given (float32 from GGUF files)")
    load_in_4bit: bool = Field(default=False, description="linear weights in 4 bits (bitsandbytes; the extra quant)")
    load_in_8bit: bool = Field(default=False, description="linear weights in 8 bits (bitsandbytes; the extra quant)")
    trust_remote_code: bool = Field(default=False, description="permission to run code that comes with the model; read it first")
    chat_template_args: dict[str, Any] = Field(
        default_factory=dict, description="argument of the chat template, such as enable_thinking=false, or chat_template=NAME (of several) or FILE; repeat for several"
    )
    reply_tokens: int = Field(default=REPLY_TOKENS, ge=1, description="longest reply, in tokens; models that think need hundreds")
    prove: bool = Field(default=False, description="proof of the model's structure done anew, where an earlier one is kept")

    @field_validator("device", mode="before")
    @classmethod
    def _device_by_name(cls, value: Any) -> Any:
        return str(value) if isinstance(value, torch.device) else value

    @field_validator("dtype", mode="before")
    @classmethod
    def _dtype_by_name(cls, value: Any) -> Any:
        return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value

    @field_validator("chat_template_args")
    @classmethod
    def _for_the_template(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(TEMPLATE_OUTPUT & set(value))
        if taken:
            raise ValueError(f"{taken[0]} says in what form a prompt is rendered, not what the template writes; leave it out")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("a model is held in 4 or in 8 bits; give one of `load_in_4bit` and `load_in_8bit`")
        if self.device is not None and self.device_map is not None:
            raise ValueError("a device map says where every part goes; give one of `device` and `device_map`")
        return self

    @property
    def quantized(self) -> Quantized | None:
        """How the linear weights are held; None where they are as stored."""
        return "4bit" if self.load_in_4bit else "8bit" if self.load_in_8bit else None

    @property
    def loading(self) -> Loading:
        """The same without what a plan adds to it."""
        return Loading(**{name: getattr(self, name) for name in Loading.model_fields if name in self.model_fields_set})
