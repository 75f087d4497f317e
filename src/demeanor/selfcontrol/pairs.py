"""Preference pairs: the reply steered towards what the questions want, against the one steered away from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..behaviours import Prompt, Question, opposites
from ..io.atomic import new_file
from ..io.json_files import write_json_lines
from ..models import Session
from .searching import DEFAULT, search
from .settings import Settings
from .trace import Traces


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two replies to a prompt, and what the model says of them when asked: S towards what was wanted."""

    prompt: Prompt
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float

    def to_json(self, session: Session) -> dict[str, Any]:
        """As preference trainers read it: messages where the model has a chat template, texts where it has none."""
        scores = {"score_chosen": self.chosen_score, "score_rejected": self.rejected_score}
        if not session.has_template:
            return {"prompt": session.render(self.prompt), "chosen": self.chosen, "rejected": self.rejected, **scores}
        system = [{"role": "system", "content": self.prompt.system}] if self.prompt.system else []
        messages = system + [{"role": role, "content": content} for role, content in self.prompt.messages]
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in (self.chosen, self.rejected))
        return {"prompt": messages, "chosen": chosen, "rejected": rejected, **scores}


def preference_pairs(
    session: Session, prompts: Sequence[str | Prompt], questions: Sequence[Question], settings: Settings = DEFAULT
) -> tuple[list[Pair], Traces, Traces]:
    """Pairs from two searches, towards and away; a prompt on which the two end in the same reply, or neither gains, gives none."""
    towards = search(session, prompts, questions, settings)
    away = search(session, prompts, opposites(questions), settings)
    pairs = []
    for one, other in zip(towards.traces, away.traces, strict=True):
        # Wanting the other answer mirrors the score.
        pair = Pair(
            prompt=one.prompt, chosen=one.reply.text, rejected=other.reply.text, chosen_score=one.score, rejected_score=1 - other.score
        )
        if pair.chosen != pair.rejected and pair.chosen_score > pair.rejected_score:
            pairs.append(pair)
    return pairs, towards, away


def write_pairs(pairs: Sequence[Pair], session: Session, path: Path) -> None:
    """A JSON object a line with prompt, chosen and rejected."""
    with new_file(path) as work:
        write_json_lines(work, (pair.to_json(session) for pair in pairs))
