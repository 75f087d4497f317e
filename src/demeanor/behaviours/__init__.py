"""Behaviours: the file format, the prompts and the presets."""

from .audience import LoadedModel
from .definition import SET_NAMES, Behaviour, SetName
from .preset import Preset, presets
from .prompts import Prompt, as_prompt, as_prompts, asked
from .questions import Question, as_questions, opposites, question_presets, questions_of
from .reading import BehaviourLike, as_behaviour, behaviour, detect_of
from .robust_set import ROBUST_SETS, RobustSet, RobustSetName
from .schema import BehaviourFile, Detect

__all__ = [
    "ROBUST_SETS", "SET_NAMES", "Behaviour", "BehaviourFile", "BehaviourLike", "Detect", "LoadedModel", "Preset", "Prompt", "Question", "RobustSet", "RobustSetName", "SetName",
    "as_behaviour", "as_prompt", "as_prompts", "as_questions", "asked", "behaviour", "detect_of", "opposites", "presets", "question_presets", "questions_of",
]  # fmt: skip
