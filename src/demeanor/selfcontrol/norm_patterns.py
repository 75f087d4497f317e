"""Where in a model its judgement of a reply depends on the prompt: one pattern of gradient norms per question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..behaviours import Prompt, Question, as_prompts, as_questions
from ..detect.suffix import suffix
from ..errors import DataError
from ..models import Session
from .branches import branched
from .gradient import NormPattern, norm_pattern, suffix_gradients
from .prompt_gradients import stream_norms


def norms(session: Session, prompts: Sequence[Prompt], questions: Mapping[str, Sequence[Question]]) -> dict[str, NormPattern]:
    """The norm pattern of each named list of questions, about the plain replies to the prompts, with nothing added.

    Prompts without a reply are left out of all of them alike; DataError where none is left.
    """
    if not prompts or not questions:
        raise DataError("A norm pattern needs prompts to reply to and something to ask about the replies.")
    encoded = [session.encode(prompt) for prompt in as_prompts(prompts)]
    replies = [[token for token in said[0] if token not in session.end_ids] for said in branched(session, encoded)]
    ids = [row for row, reply in zip(encoded, replies) if reply]
    said = [reply for reply in replies if reply]
    if not ids:
        raise DataError(f"{session.name} says nothing to any of these prompts, so there is no reply to judge.")
    width = max(map(len, ids))
    size = stream_norms(session, ids, width)
    nothing = torch.zeros(*size.shape, session.layout.d_model)
    patterns = {}
    for name, asked in questions.items():
        gradients = suffix_gradients(session, ids, said, [suffix(session, question) for question in as_questions(asked)], nothing)
        patterns[name] = norm_pattern(gradients.gradient.cpu(), size.cpu(), [len(row) for row in ids])
    return patterns
