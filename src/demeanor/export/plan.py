"""What baking depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ..controls.plan import ControlsPlan
from ..io.plan import BasePlan, Flag
from ..models.plan import ModelPlan


class ExportPlan(ControlsPlan, ModelPlan):
    """The model that the controls are for, and the form in which they are written, in this order."""

    form: Annotated[Literal["lora", "gguf", "lora-gguf", "gguf-vector"], Flag(("--as",))] = Field(
        default="lora",
        description="form: lora, a folder of PEFT's; for llama.cpp, in one file: gguf, the whole model (a GGUF file); lora-gguf, an adapter beside it; gguf-vector, a control vector",
    )
    edited_as: Literal["f32", "f16", "q8_0", "stored"] = Field(
        default="f32",
        description="how a whole model stores the tensors that are edited (q8_0: those in few bits as Q8_0, the rest f32; stored: each in its own type, at its own size; an output head that was the embedding is added); all others stay as they are",
    )

    @model_validator(mode="after")
    def _something_to_export(self) -> Self:
        if not self.controls:
            raise ValueError("there is nothing to export; name a control's file with `controls`")
        if "edited_as" in self.model_fields_set and self.form != "gguf":
            raise ValueError(f"`edited_as` says how a whole model stores what is edited, and {self.form} holds no whole model; leave it out")
        return self


class PushPlan(BasePlan):
    """What is put on the Hub, and where."""

    place: Annotated[Path, Flag(positional="PLACE")] = Field(description="control file, or the folder of a run, a training, an export or a bake")
    repo: Annotated[str, Flag(positional="REPO")] = Field(description="repository of the Hub, owner/name; made where it is not there")
    public: bool = Field(default=False, description="a new repository that everybody can see")
    revision: str | None = Field(default=None, description="branch of the repository; its main one unless given")


class BakePlan(ControlsPlan, ModelPlan):
    """The model whose files are edited, and the controls that are written into them, in this order."""

    verify: Annotated[bool, Flag(("--verify/--no-verify",))] = Field(
        default=True, description="what is written loaded and compared with the control at run time, where memory allows"
    )
    copy_all: Annotated[bool, Flag(("--copy",))] = Field(
        default=False, description="copies of shards without an edited tensor, instead of hard links to the model's own files"
    )

    keep_norms: bool = Field(
        default=False,
        description="edited weights with the length that each of their columns (an input, or a token) had; what is taken out is out, and the rest is more than the control leaves at run time",
    )

    @model_validator(mode="after")
    def _something_to_bake(self) -> Self:
        if not self.controls:
            raise ValueError("baking needs a control; name its file with `controls`")
        return self
