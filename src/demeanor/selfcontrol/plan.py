"""Whom SelfControl asks what, about which prompts: the parts of the plans of `selfcontrol run`, `pairs` and `norms`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from ..behaviours import Behaviour, Preset, Prompt, SetName, asked, behaviour, opposites
from ..behaviours.prompts import Columns, Split, prompts_from_rows
from ..detect import check_detector
from ..errors import DataError
from ..io.plan import BasePlan, Flag
from ..io.row_files import read_rows
from ..models import Session
from ..models.plan import BEHAVIOUR_HELP, ModelPlan


class AskingPlan(ModelPlan):
    """The model, and what it is asked about its replies."""

    behaviour: Annotated[str | None, Flag(("--behaviour", "-b"))] = Field(
        default=None, description=f"{BEHAVIOUR_HELP}; its questions steer, its detector judges beside them"
    )
    questions: Annotated[tuple[str, ...], Flag(("--question", "-q"))] = Field(
        default=(),
        description="yes-no question about the reply, or a preset (helpful, harmless, toxic, anger, ...); repeat to weigh several",
    )

    @model_validator(mode="after")
    def _something_to_ask(self) -> Self:
        if self.behaviour is None and not self.questions:
            raise ValueError("there is nothing to ask; name a question with `questions`, or a behaviour with `behaviour`")
        return self

    def named(self) -> list[Behaviour | Preset]:
        """The behaviour that is named, and one for every question; mistakes in them are told before a model is loaded."""
        of_questions = [behaviour(question=text) for text in self.questions]
        if self.behaviour is None:
            return of_questions
        read = behaviour(self.behaviour)
        check_detector(read)
        if isinstance(read, Behaviour) and not read.questions:
            raise DataError(f"The behaviour {read.name!r} has no questions; add `questions: [{{ask: ..., want: yes}}]` to its file.")
        return [read, *of_questions]


class SteeringPlan(AskingPlan):
    """The same of a behaviour or of questions, with which answer is wanted."""

    less: bool = Field(default=False, description="the other answer to every question, so steering away")

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.behaviour is not None and self.questions:
            raise ValueError("SelfControl is steered by either `behaviour` or `questions`; leave one of them out")
        return self

    def steering(self, named: Sequence[Behaviour | Preset], session: Session) -> Behaviour:
        """All of what steers as one behaviour, settled by the model and wanted as the plan says; the first one judges."""
        settled = [preset.settled(session) for preset in named]
        questions = tuple(question for behaviour in settled for question in behaviour.questions)
        name = " and ".join(behaviour.name for behaviour in settled)
        return replace(settled[0], name=name, questions=opposites(questions) if self.less else questions)


class PromptsPlan(BasePlan):
    """The prompts of a file, or those of a set of the behaviour."""

    prompts: Path | None = Field(
        default=None, description="CSV, JSON, JSONL, text or Parquet file of prompts; those of the behaviour unless given"
    )
    column: str = Field(default="prompt", description="column of prompts in that file")
    prompt_set: Annotated[SetName, Flag(("--set",))] = Field(default="shows", description="prompt set of the behaviour")
    split: Split = Field(default="test", description="split of that set")
    max_prompts: int | None = Field(default=None, ge=1, description="most prompts that are used")

    @cached_property
    def rows(self) -> list[Prompt] | None:
        """The prompts of the file, where one is named."""
        return (
            None
            if self.prompts is None
            else asked(prompts_from_rows(read_rows(self.prompts), Columns(prompt=self.column), str(self.prompts)))
        )

    def check(self, named: Sequence[Behaviour | Preset]) -> None:
        """DataError for a file or a set without prompts, before a model is loaded; what a preset lacks is told when it is settled."""
        if self.rows is None:
            for settled in (behaviour for behaviour in named if isinstance(behaviour, Behaviour)):
                self.read(settled)

    def read(self, of: Behaviour) -> list[Prompt]:
        """The prompts, without replies; DataError where there are none."""
        if self.rows is not None:
            return self.rows[: self.max_prompts]
        prompts = asked(of.set(self.prompt_set, self.split, self.max_prompts))
        if not prompts:
            raise DataError(f"{of.name!r} has no {self.split} prompts in {self.prompt_set}; name a file of prompts with --prompts.")
        return prompts


class TrainPromptsPlan(PromptsPlan):
    """The same, of the train split unless told."""

    split: Split = Field(default="train", description=PromptsPlan.model_fields["split"].description)


class NormPromptsPlan(TrainPromptsPlan):
    """The same, a sample unless told: gradients take time."""

    max_prompts: int | None = Field(default=64, ge=1, description=PromptsPlan.model_fields["max_prompts"].description)
