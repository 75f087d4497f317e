"""What a search changed, by the behaviour's detector and the known answers, with the suffix score beside; and its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..behaviours import Detect, Prompt, Question, as_prompts, as_questions
from ..controls import save_control
from ..controls.files import CONTROL
from ..detect import make_detector, present
from ..detect.suffix import SelfJudgement
from ..io.json_files import write_json, write_json_lines
from ..measure.answers import is_right
from ..models import Session
from ..stats import intervals
from ..stats.score import Score
from .trace import Traces

DETECTED, ANSWERS, SCORE = "detected_rate", "answers", "suffix_score"


@dataclass(frozen=True)
class Outcome:
    """Scores before and after, and what became of them, by name: the rate of the detector, of right answers where they are
    known, and the mean suffix score, which is what was searched for and so never counts as evidence alone."""

    before: Mapping[str, Score]
    after: Mapping[str, Score]
    delta: Mapping[str, Score]
    p: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        scores = {name: {key: score.to_json() for key, score in getattr(self, name).items()} for name in ("before", "after", "delta")}
        for key, p in self.p.items():
            scores["delta"][key]["p"] = p
        return scores


def scores(session: Session, prompts: Sequence[str | Prompt], replies: Sequence[str], questions: Sequence[Question]) -> list[float]:
    """S of a reply to each prompt: what the model itself says of it, uncontrolled, from 0 (not as the questions want it) to 1."""
    return SelfJudgement(as_questions(questions), session=session).probabilities(replies, as_prompts(prompts))


def outcome(session: Session, found: Traces, detect: Detect) -> Outcome:
    """Before and after of every prompt that was searched for, changed or not."""
    traces, detector = found.traces, make_detector(detect, session)
    prompts = [trace.prompt for trace in traces]

    def judged(texts: Sequence[str]) -> tuple[list[bool], list[bool]]:
        right = [is_right(text, prompt.answer) for text, prompt in zip(texts, prompts) if prompt.answer is not None]
        return present(detector, texts, prompts), right

    (shown, right), (shows, rights) = judged([trace.plain.text for trace in traces]), judged([trace.reply.text for trace in traces])
    scores = [trace.plain_score for trace in traces], [trace.score for trace in traces]

    def told(shown: Sequence[bool], right: Sequence[bool], score: Sequence[float]) -> dict[str, Score]:
        return {DETECTED: intervals.rate(DETECTED, shown), ANSWERS: intervals.rate(ANSWERS, right, "higher"), SCORE: _mean(SCORE, score)}

    pairs: dict[str, tuple[Sequence[float], Sequence[float]]] = {DETECTED: (shown, shows), ANSWERS: (right, rights), SCORE: scores}
    delta = {name: _mean(name, [float(now) - float(was) for was, now in zip(*pair)]) for name, pair in pairs.items()}
    p = {DETECTED: intervals.mcnemar(shown, shows)} | ({ANSWERS: intervals.mcnemar(right, rights)} if right else {})
    return Outcome(told(shown, right, scores[0]), told(shows, rights, scores[1]), delta, p)


def _mean(name: str, values: Sequence[float]) -> Score:
    return intervals.mean(name, torch.tensor(values, dtype=torch.float64))


def write_run(traces: Traces, result: Outcome, session: Session, folder: Path) -> None:
    """control.safetensors, scores.json, run.json (what was asked, and how it was searched), replies.jsonl (before and after) and trace.jsonl (all that was tried)."""
    save_control(traces.control(session), folder / CONTROL)
    write_json(folder / "scores.json", result.to_json())
    write_json(folder / "run.json", {"model": session.name, **traces.made_from})
    whole = [trace.to_json() for trace in traces.traces]
    write_json_lines(folder / "trace.jsonl", whole)
    write_json_lines(
        folder / "replies.jsonl", [{key: value for key, value in each.items() if key not in ("steps", "ids")} for each in whole]
    )
