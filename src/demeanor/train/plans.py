"""The plans of the recipes: everything a training depends on, as asked for.

Options that transformers, PEFT or TRL have too are called as they call them. A plan is kept beside its checkpoints, so that
what is resumed is what was begun.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ..behaviours import SetName
from ..controls.plan import CONTROL_HELP
from ..io.plan import Flag
from ..models import Loading
from ..models.plan import BEHAVIOUR_HELP, BehaviourName, ModelPlan

COMMON_WIDTH = 2048  # d_model of the models that the usual learning rates are for
SOURCES = "file or Hub data set (with an optional :WEIGHT)"
MaxLength = Annotated[int, Field(ge=8, description="tokens of a row; what is longer is cut at its end")]
TrainPrompts = Annotated[int | None, Field(ge=1, description="most prompts of each set that are trained on")]


class Training(Loading, ModelPlan):
    """What every recipe is told."""

    behaviour: Annotated[str | None, Flag(("--behaviour", "-b"))] = Field(
        default=None, description=f"what is measured before and after: {BEHAVIOUR_HELP}"
    )
    merge: bool = Field(default=False, description="adapter merged into the model's weights")
    lora_r: int = Field(default=16, ge=1, le=1024, description="rank of the LoRA adapter")
    max_steps: int | None = Field(default=None, ge=1, description="optimiser steps; as many as the epochs make unless given")
    num_train_epochs: float = Field(default=1.0, gt=0, le=1000, description="passes over the data")
    per_device_train_batch_size: int = Field(default=8, ge=1, description="rows in one forward pass of one process")
    gradient_accumulation_steps: int = Field(default=1, ge=1, description="forward passes in one step")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="learning rate; unless given 1e-4 for an adapter and 1e-5 for every weight where d_model is 2048, in inverse proportion",
    )
    gradient_checkpointing: bool = Field(default=False, description="activations computed anew in the backward pass, to save memory")
    save_steps: int = Field(default=50, ge=1, description="steps between checkpoints")
    logging_steps: int = Field(default=10, ge=1, description="steps between two lines of the log")
    report_to: tuple[str, ...] = Field(default=(), description="tracker (tensorboard, wandb, mlflow, ...); repeat for several")
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the order of rows, of sampling and of the adapter")
    max_prompts: int | None = Field(default=None, ge=1, description="most prompts of each set that are measured")

    @property
    def every_weight(self) -> bool:
        """Whether every weight is trained, not an adapter."""
        return False

    def rate(self, d_model: int) -> float:
        """The learning rate: narrow models need a larger one, as Adam moves every weight alike (Yang et al., 2022)."""
        return self.learning_rate or (1e-5 if self.every_weight else 1e-4) * COMMON_WIDTH / d_model

    @property
    def trains(self) -> str:
        """What is trained, in words."""
        return "every weight" if self.every_weight else f"a LoRA adapter of rank {self.lora_r}{', merged' if self.merge else ''}"


class FullTraining(Training):
    """What a recipe is told that can train every weight."""

    full: bool = Field(default=False, description="every weight trained, not a LoRA adapter")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.full and (self.quantized or self.merge):
            raise ValueError("`full` trains every weight, which cannot be quantised and leaves nothing to merge; leave one out")
        return self

    @property
    def every_weight(self) -> bool:
        return self.full


class Heal(FullTraining):
    """Preference training after an edit."""

    pairs: tuple[str, ...] = Field(min_length=1, description=f"{SOURCES}, with columns prompt, chosen, rejected (system, too); repeat to mix several")
    columns: dict[str, str] = Field(
        default_factory=dict, description="which column is the prompt, chosen, rejected or system, such as prompt=question; repeat for several"
    )
    base: str | None = Field(default=None, description="model before the edit, to compare with")
    beta: float = Field(default=0.1, gt=0, description="strength with which the edited model holds the result (DPO's beta)")
    likelihood: float = Field(
        default=1.0, ge=0, description="weight of the chosen replies' own likelihood beside the preference; 0 is plain DPO"
    )
    max_length: MaxLength = 1024


class Sft(FullTraining):
    """Fine-tuning on texts and conversations."""

    data: tuple[str, ...] = Field(
        min_length=1,
        description=f"{SOURCES}, with texts (text), conversations (messages) or exchanges (prompt, reply); repeat to mix several",
    )
    max_length: MaxLength = 1024


class Detox(FullTraining):
    """Fine-tuning on counter-narrative dialogues."""

    behaviour: Annotated[str | None, Flag(("--behaviour", "-b"))] = Field(
        default="toxicity", description=Training.model_fields["behaviour"].description
    )
    dialogues: tuple[str, ...] = Field(
        min_length=1,
        description=f"{SOURCES}, with a turn a row: dialogue_id, turn_id, type (HS and CN, or user and assistant), text; repeat to mix several",
    )
    held_out: float = Field(default=0.1, gt=0, lt=1, description="share of the dialogues that is kept for the loss before and after")
    max_length: MaxLength = 1024


class Rlaf(FullTraining):
    """Reward from automatic feedback."""

    behaviour: BehaviourName
    per_device_train_batch_size: int = Field(default=32, ge=1, description="rows in one forward pass of one process")
    method: Literal["rloo", "grpo"] = Field(default="rloo", description="estimator of the policy gradient")
    reward: tuple[str, ...] = Field(
        default=(),
        description="what is rewarded, NAME[:WEIGHT]: a behaviour (less of it), a detector, or suffix (what the model answers to the behaviour's questions); repeat to mix several. Less of the behaviour unless given, and suffix where it has questions",
    )
    beta: float = Field(default=0.05, gt=0, description="weight of the divergence from the model before")
    num_generations: int = Field(default=8, ge=2, description="replies sampled to each prompt")
    temperature: float = Field(default=1.0, gt=0, description="temperature of sampling, from the whole vocabulary")
    shift: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="tripwire: by how much more replies may be empty, and the share of letters in another script may change",
    )
    off_topic: float = Field(default=0.25, gt=0, lt=1, description="tripwire: by how much more replies may not answer their prompt")
    length: float = Field(default=2.0, gt=1, description="tripwire: how many times longer or shorter replies may get")
    prompts: TrainPrompts = None

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.per_device_train_batch_size % self.num_generations:
            raise ValueError(
                f"a batch of {self.per_device_train_batch_size} does not hold whole groups of {self.num_generations} replies; make it a multiple"
            )
        return self


class Prefix(Training):
    """Learning to do what a control does, or what the states do that SelfControl finds."""

    behaviour: BehaviourName
    num_train_epochs: float = Field(default=6.0, gt=0, le=1000, description="passes over the targets")
    control: Annotated[str | None, Flag(("--from",))] = Field(
        default=None, description=f"{CONTROL_HELP}, that is distilled; SelfControl's search with the behaviour's questions unless given"
    )
    less: bool = Field(default=False, description="search for the other answer to every question")
    sets: Annotated[tuple[SetName, ...], Flag(("--set",))] = Field(
        default=("shows",), min_length=1, description="prompt set that is searched; the others keep their replies; repeat for several"
    )
    kind: Literal["lora", "adaption-prompt"] = Field(
        default="lora", description="what is trained: a LoRA adapter, or adaption prompts (which PEFT computes at run time)"
    )
    adapter_len: int = Field(default=10, ge=1, le=1024, description="states that every layer attends to besides, of adaption prompts")
    num_virtual_tokens: int = Field(
        default=0, ge=0, le=1024, description="embeddings that open every prompt, learned beside a LoRA adapter"
    )
    states: float = Field(default=1.0, ge=0, description="weight of following the stream, beside what is said next")
    said: float = Field(
        default=1.0,
        ge=0,
        description="weight of steered replies' own likelihood, beside what is said next: a control may just tip the scales",
    )
    apart: float = Field(
        default=0.5,
        gt=0,
        description="share of its norm (median) by which the stream may be moved; replies that are moved further are left out",
    )
    top_k: int = Field(default=256, ge=1, description="number of likeliest next tokens that are followed one by one")
    prompts: TrainPrompts = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kind == "adaption-prompt" and (self.merge or self.num_virtual_tokens or self.quantized):
            raise ValueError("adaption prompts are read at run time: they cannot be merged, quantised or opened with embeddings")
        if self.num_virtual_tokens and self.merge:
            raise ValueError("embeddings that open every prompt cannot be merged into weights; leave one of the two out")
        if self.control is not None and (self.less or self.sets != ("shows",)):
            raise ValueError("`less` and `sets` say what is searched, and with a control nothing is; leave them out")
        return self

    @property
    def trains(self) -> str:
        if self.kind == "adaption-prompt":
            return f"adaption prompts of {self.adapter_len} states"
        return super().trains + (f" and {self.num_virtual_tokens} embeddings before every prompt" if self.num_virtual_tokens else "")
