"""The plans of the recipes: everything a training depends on, as asked for; frozen.

A plan is kept beside its checkpoints, so that what is resumed is what was begun.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ..behaviours import SetName
from ..io.plan import BasePlan
from ..models import Quantized
from ..models.session import REPLY_TOKENS

COMMON_WIDTH = 2048  # d_model of the models that the usual learning rates are for


class Training(BasePlan):
    """What every recipe is told."""

    model: str = Field(description="organism, a model folder, an adapter folder, or a Hub id with an optional @revision")
    behaviour: str | None = Field(None, description="what is measured before and after: a preset, or the path of a behaviour file")
    full: bool = Field(False, description="train every weight, not a LoRA adapter")
    merge: bool = Field(False, description="write the adapter merged into the model's weights")
    rank: int = Field(16, ge=1, le=1024, description="the rank of the LoRA adapter")
    quantized: Quantized | None = Field(None, description="hold the weights under the adapter in 4bit or 8bit (QLoRA)")
    steps: int | None = Field(None, ge=1, description="optimiser steps; as many as the epochs make unless told")
    epochs: float = Field(1.0, gt=0, le=1000, description="passes over the data")
    batch: int = Field(8, ge=1, description="rows in one forward pass of one process")
    accumulate: int = Field(1, ge=1, description="forward passes in one step")
    learning_rate: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="unless told 1e-4 for an adapter and 1e-5 for every weight where d_model is 2048, in inverse proportion",
    )
    longest: int = Field(1024, ge=8, description="tokens of a row; what is longer is cut at its end")
    save_every: int = Field(50, ge=1, description="steps between checkpoints")
    log_every: int = Field(10, ge=1, description="steps between two lines of the log")
    save_memory: bool = Field(False, description="recompute activations in the backward pass")
    seed: int = Field(0, ge=0, lt=2**32, description="of the order of rows, of sampling and of the adapter")
    report_to: tuple[str, ...] = Field((), description="trackers: tensorboard, wandb, mlflow, ...")
    max_prompts: int | None = Field(None, ge=1, description="measure on at most this many prompts of each set")
    device: str | None = Field(None, description="cpu, cuda, ...; the GPU when there is one")
    dtype: str | None = Field(None, description="float32, bfloat16, ...; as stored")
    reply_tokens: int = Field(REPLY_TOKENS, ge=1, description="how long a reply may get")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.full and (self.quantized or self.merge):
            raise ValueError("full trains every weight, which cannot be quantised and leaves nothing to merge; leave one out")
        return self

    def rate(self, d_model: int) -> float:
        """The learning rate: narrow models need a larger one, as Adam moves every weight alike (Yang et al., 2022)."""
        return self.learning_rate or (1e-5 if self.full else 1e-4) * COMMON_WIDTH / d_model

    @property
    def trains(self) -> str:
        """What is trained, in words."""
        return "every weight" if self.full else f"a LoRA adapter of rank {self.rank}{', merged' if self.merge else ''}"


class Heal(Training):
    """Preference training after an edit."""

    pairs: tuple[str, ...] = Field(min_length=1, description="files or Hub data sets of pairs, each with an optional :weight")
    base: str | None = Field(None, description="the model before the edit, to compare with")
    beta: float = Field(0.1, gt=0, description="how strongly the edited model holds the result: DPO's beta")
    likelihood: float = Field(1.0, ge=0, description="weight of the chosen replies' own likelihood beside the preference; 0 is plain DPO")


class Sft(Training):
    """Fine-tuning on texts and conversations."""

    data: tuple[str, ...] = Field(
        min_length=1, description="files or Hub data sets of texts or conversations, each with an optional :weight"
    )


class Detox(Training):
    """Fine-tuning on counter-narrative dialogues."""

    dialogues: tuple[str, ...] = Field(min_length=1, description="files or Hub data sets with a turn a row")
    held_out: float = Field(0.1, gt=0, lt=1, description="share of the dialogues that is kept for the loss before and after")


class Rlaf(Training):
    """Reward from automatic feedback."""

    behaviour: str
    batch: int = Field(32, ge=1, description="rows in one forward pass of one process")
    method: Literal["rloo", "grpo"] = Field("rloo", description="rloo, or grpo")
    reward: tuple[str, ...] = Field(
        (), description="what is rewarded, as NAME:WEIGHT; unless told less of the behaviour, and suffix where it has questions"
    )
    beta: float = Field(0.05, gt=0, description="weight of the divergence from the model before")
    generations: int = Field(8, ge=2, description="replies sampled to each prompt")
    temperature: float = Field(1.0, gt=0, description="of sampling; the whole vocabulary is sampled from")
    shift: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="tripwire: by how much more replies may be empty, and the share of letters in another script may change",
    )
    off_topic: float = Field(0.25, gt=0, lt=1, description="tripwire: by how much more replies may not answer their prompt")
    length: float = Field(2.0, gt=1, description="tripwire: how many times longer or shorter replies may get")
    prompts: int | None = Field(None, ge=1, description="train on at most this many prompts of each set")

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.batch % self.generations:
            raise ValueError(f"a batch of {self.batch} does not hold whole groups of {self.generations} replies; make it a multiple")
        return self


class Prefix(Training):
    """Learning to do what a control does, or what the states do that SelfControl finds."""

    behaviour: str
    epochs: float = Field(6.0, gt=0, le=1000, description="passes over the targets")
    control: str | None = Field(None, description="the control to distil; SelfControl's search with the behaviour's questions unless told")
    less: bool = Field(False, description="search for the other answer to every question")
    sets: tuple[SetName, ...] = Field(
        ("shows",), min_length=1, description="the prompts of the behaviour that are searched; the others keep their replies"
    )
    kind: Literal["lora", "adaption-prompt"] = Field(
        "lora", description="what is trained: lora, or adaption-prompt (which PEFT computes at run time)"
    )
    length: int = Field(10, ge=1, le=1024, description="states that every layer attends to besides, of adaption prompts")
    num_virtual_tokens: int = Field(0, ge=0, le=1024, description="embeddings that open every prompt, learned beside a LoRA adapter")
    states: float = Field(1.0, ge=0, description="weight of following the stream, beside what is said next")
    said: float = Field(
        1.0, ge=0, description="weight of steered replies' own likelihood, beside what is said next: a control may just tip the scales"
    )
    apart: float = Field(
        0.5, gt=0, description="a reply is left out where the stream is moved by more than this share of its norm (median)"
    )
    top: int = Field(256, ge=1, description="of the likeliest next tokens, how many are followed one by one")
    prompts: int | None = Field(None, ge=1, description="learn from at most this many prompts of each set")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kind == "adaption-prompt" and (self.full or self.merge or self.num_virtual_tokens or self.quantized):
            raise ValueError("adaption prompts are read at run time: they cannot be merged, quantised or opened with embeddings")
        if self.num_virtual_tokens and self.merge:
            raise ValueError("embeddings that open every prompt cannot be merged into weights; leave one of the two out")
        if self.full:
            raise ValueError("a prefix leaves the weights as they are; use sft to train them all")
        if self.control is not None and (self.less or self.sets != ("shows",)):
            raise ValueError("less and sets say what is searched, and with a control nothing is; leave them out")
        return self

    @property
    def trains(self) -> str:
        if self.kind == "adaption-prompt":
            return f"adaption prompts of {self.length} states"
        return super().trains + (f" and {self.num_virtual_tokens} embeddings before every prompt" if self.num_virtual_tokens else "")
