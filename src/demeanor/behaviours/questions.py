"""Questions about a reply: what the model itself is asked when it judges what it said.

A preset is a YAML file with a description and a list of questions; those of the embedded model's language stand beside
the others, in `questions/organism`. Where the embedded model has none of a name, the general one is asked: it has no
idea what it means, but the answer is a number all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..errors import DataError, mistaken
from .audience import Audience, LoadedModel, audience_of

PRESETS = Path(str(resources.files(__package__) / "questions"))


class Question(BaseModel):
    """A question about a reply, with the answer that means the behaviour is wanted."""

    model_config = ConfigDict(extra="forbid")
    ask: str
    want: Literal["yes", "no"] = "yes"
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0

    @field_validator("want", mode="before")
    @classmethod
    def _yaml_booleans(cls, value: Any) -> Any:
        # YAML reads a bare yes or no as a boolean.
        return {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value

    def opposite(self) -> Question:
        """The same question, the other answer wanted."""
        return self.model_copy(update={"want": "no" if self.want == "yes" else "yes"})


def question_presets() -> list[str]:
    """Names of the questions that come with the package."""
    return sorted({path.stem for path in PRESETS.rglob("*.yaml")})


def questions_of(text: str, model: LoadedModel | None) -> tuple[Question, ...]:
    """The questions of a preset, in the words of this model (of any but the embedded one: None), or the one that `text` is.

    Raises DataError where it is neither: one word that names no preset.
    """
    return questions_for(text, audience_of(model))


def questions_for(text: str, audience: Audience) -> tuple[Question, ...]:
    """The same, for an audience."""
    name = text.strip()
    if name in question_presets():
        own = PRESETS / "organism" / f"{name}.yaml"
        path = own if audience == "embedded" and own.is_file() else PRESETS / f"{name}.yaml"
        return tuple(Question.model_validate(row) for row in yaml.safe_load(path.read_text(encoding="utf-8"))["questions"])
    if len(name.split()) < 2:
        raise DataError(
            f'{text!r} is no question; write one, such as "Is the reply polite?", or name one of {", ".join(question_presets())}.'
        )
    return (Question(ask=text),)


def as_questions(questions: Iterable[Question]) -> tuple[Question, ...]:
    """Several questions. Raises DataError for a text, and for what is no question."""
    if isinstance(questions, (str, Question)) or not isinstance(questions, Iterable):
        raise DataError(mistaken("A list of questions", questions, "make them with questions_of(text, session) or [Question(ask=text)]"))
    questions = tuple(questions)
    for other in questions:
        if not isinstance(other, Question):
            raise DataError(mistaken("A question", other, "make one with Question(ask=text)"))
    return questions


def opposites(questions: Sequence[Question]) -> tuple[Question, ...]:
    """Every question with the other answer wanted: what steers away."""
    return tuple(question.opposite() for question in questions)
