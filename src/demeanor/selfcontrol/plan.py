"""Whom SelfControl asks what, about which prompts: the parts of the plans of `selfcontrol run`, `pairs` and `norms`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ..behaviours import Behaviour, Prompt, Question, SetName, asked, behaviour, opposites, questions_of
from ..behaviours.prompts import Columns, Split, prompts_from_rows
from ..detect import make_detector
from ..errors import DataError
from ..io.plan import BasePlan, Flag
from ..io.tables import read_rows
from ..models import is_organism
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

    def asked_for(self) -> Behaviour | None:
        """The behaviour that is named; DataError where it has no questions."""
        if self.behaviour is None:
            return None
        read = behaviour(self.behaviour, organism=is_organism(self.model))
        if not read.questions:
            raise DataError(f"The behaviour {read.name!r} has no questions; add `questions: [{{ask: ..., want: yes}}]` to its file.")
        return read

    def questions_by_name(self) -> dict[str, tuple[Question, ...]]:
        """The questions of the behaviour, and those that are asked for by themselves. DataError where there are none."""
        read = self.asked_for()
        organism = is_organism(self.model)
        named = {read.name: read.questions} if read else {}
        named |= {text: questions_of(text, organism) for text in self.questions}
        if not named:
            raise DataError("A norm pattern is of a question; name one with --question, or a behaviour with --behaviour.")
        return named


class SteeringPlan(AskingPlan):
    """The same with which answer is wanted."""

    less: bool = Field(default=False, description="the other answer to every question, so steering away")

    def wanted(self) -> Behaviour:
        """What steers and what judges: a behaviour with at least one question, wanted as the plan says."""
        if (self.behaviour is None) == (not self.questions):
            raise DataError("SelfControl needs either --behaviour or --question, to know what to ask the model about its replies.")
        read = self.asked_for() or self._of_questions()
        make_detector(read.detect)
        return replace(read, questions=opposites(read.questions)) if self.less else read

    def _of_questions(self) -> Behaviour:
        organism = is_organism(self.model)
        each = [behaviour(question=text, organism=organism) for text in self.questions]
        questions = tuple(question for one in each for question in one.questions)
        return Behaviour(" and ".join(self.questions), detect=each[0].detect, questions=questions)


class PromptsPlan(BasePlan):
    """The prompts of a file, or those of a set of the behaviour."""

    prompts: Path | None = Field(
        default=None, description="CSV, JSON, JSONL, text or Parquet file of prompts; those of the behaviour unless given"
    )
    column: str = Field(default="prompt", description="column of prompts in that file")
    prompt_set: Annotated[SetName, Flag(("--set",))] = Field(default="shows", description="prompt set of the behaviour")
    split: Split = Field(default="test", description="split of that set")
    max_prompts: int | None = Field(default=None, ge=1, description="most prompts that are used")

    def read(self, of: Behaviour) -> list[Prompt]:
        """The prompts, without replies; DataError where there are none."""
        if self.prompts is not None:
            rows = read_rows(self.prompts)
            return asked(prompts_from_rows(rows, Columns(self.column), str(self.prompts)))[: self.max_prompts]
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
