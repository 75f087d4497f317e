"""Behaviours: the file format, the prompts and the presets."""

from .behaviour import SET_NAMES, Behaviour, SetName, behaviour, presets
from .prompts import Prompt, as_prompt, asked
from .questions import Question, opposites, question_presets, questions_of

__all__ = [
    "SET_NAMES", "Behaviour", "Prompt", "Question", "SetName", "as_prompt", "asked", "behaviour", "opposites", "presets", "question_presets",
    "questions_of",
]  # fmt: skip
