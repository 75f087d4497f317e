"""What can be told about loading a model, as one frozen value that every verb shares."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ..errors import DataError
from ..io.plan import BasePlan

REPLY_TOKENS = 48
LOCAL, RAY, CLIENT = "local", "ray", re.compile(r"ray://[^\s/:]+:\d+")
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
        return str(value) if _is_torchs(value, "device") else value

    @field_validator("dtype", mode="before")
    @classmethod
    def _dtype_by_name(cls, value: Any) -> Any:
        return str(value).removeprefix("torch.") if _is_torchs(value, "dtype") else value

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


class SpreadLoading(Loading):
    """The same, and whether workers of a Ray cluster hold the model too and do what is long."""

    on: str = Field(
        default=LOCAL,
        description="where prompts are run: local (this process), ray (the Ray cluster of this machine or of RAY_ADDRESS, or one begun here), or ray://HOST:PORT (the extra ray)",
    )
    workers: int | None = Field(default=None, ge=1, description="number of workers, each with the whole model; as many as the cluster has room for unless given")
    cpus_per_worker: float | None = Field(
        default=None, gt=0, description="CPUs of each worker; one beside GPUs, and else all of the smallest machine unless given"
    )
    gpus_per_worker: float | None = Field(
        default=None, ge=0, description="GPUs of each worker, or a share of one; one where the cluster has any unless given; several take --device-map"
    )

    @field_validator("on")
    @classmethod
    def _known_place(cls, value: str) -> str:
        if value not in (LOCAL, RAY) and not CLIENT.fullmatch(value):
            raise ValueError(f"{value!r} is no place to run; use local, ray or ray://HOST:PORT")
        return value

    @model_validator(mode="after")
    def _of_workers(self) -> Self:
        late = next((name for name in ("workers", "cpus_per_worker", "gpus_per_worker") if getattr(self, name) is not None), None)
        if self.on == LOCAL and late is not None:
            raise ValueError(f"`{late}` is about workers of a Ray cluster; add `on` ray, or leave it out")
        return self

    @property
    def address(self) -> str | None:
        """Where a cluster is told; None where it is found."""
        return None if self.on in (LOCAL, RAY) else self.on

    @property
    def spread(self) -> bool:
        return self.on != LOCAL

    @property
    def loading(self) -> SpreadLoading:
        return SpreadLoading(**{name: getattr(self, name) for name in SpreadLoading.model_fields if name in self.model_fields_set})

    def same_as(self, file: Path) -> bool:
        """Whether a file holds this plan. Whoever runs the prompts, it is the same work, which may go on elsewhere."""
        anywhere = dict.fromkeys(("workers", "cpus_per_worker", "gpus_per_worker"), None) | {"on": LOCAL}
        try:
            other = self.from_file(file)
        except DataError:  # of another version
            return False
        return self.model_copy(update=anywhere).written() == other.model_copy(update=anywhere).written()

    @property
    def of_worker(self) -> Loading:
        """How each worker loads the model: on the GPUs that Ray gives it, or on the processor where that is asked for."""
        loading = Loading(**{name: getattr(self, name) for name in Loading.model_fields if name in self.model_fields_set})
        return loading if self.device == "cpu" or not self.spread else loading.model_copy(update={"device": None})

    @property
    def here(self) -> Loading:
        """How this process does: beside workers it leaves the GPUs to them, unless it is told which it has."""
        return self.of_worker.model_copy(update={"device": self.device or "cpu", "device_map": None}) if self.spread else self.of_worker


def _is_torchs(value: Any, kind: str) -> bool:
    """Whether a value is torch's device or dtype: whoever has one has imported torch, and a plan of strings needs no torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, getattr(torch, kind, ()))  # none while another thread is importing it
