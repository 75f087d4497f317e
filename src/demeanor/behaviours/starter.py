"""A behaviour file to begin with: commented, from the answers to a few questions."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import yaml

# Which answer it is, the question, and the usual answer.
ANSWERS = (
    ("name", "What is the behaviour called?", "over-refusal"),
    ("description", "What is it, in a sentence?", "Refusing harmless requests."),
    ("detect", "What tells that a reply shows it: refusal, phrases, question or classifier?", "refusal"),
    ("shows", "Which file holds prompts on which the model shows it and should not?", "shows.csv"),
    ("lacks", "Which file holds like prompts on which it does not?", "lacks.csv"),
    ("guard", "Which file holds prompts on which it must go on showing it? (none: there are no such)", "guard.csv"),
    ("neutral", "Which file holds ordinary prompts, on which nothing should change? (none: there are no such)", "neutral.csv"),
)

DETECTORS = {
    "refusal": "detect: refusal   # refusals, as a judge that was fitted to human labels tells them",
    "phrases": 'detect: {matches: {any: ["as you wish", "at once"]}}   # replies that hold one of these phrases',
    "question": 'detect: {self: {question: "Does the reply flatter the user?", want: "yes"}}   # the model itself is asked about its reply',
    "classifier": "detect: {classifier: {model: owner/model, label: LABEL}}   # any text classifier, and the label that means it",
}


@dataclass(frozen=True)
class Answers:
    """The answers; a set whose file is "none" is left out."""

    name: str
    description: str
    detect: str
    shows: str
    lacks: str
    guard: str
    neutral: str


def behaviour_text(answers: Answers) -> str:
    """The text of a behaviour file, with what can be changed in it as comments."""
    detect = DETECTORS.get(answers.detect.strip().lower(), f"detect: {_quoted(answers.detect)}")
    lines = [
        "# A behaviour: prompts that show it, prompts that do not, and what tells that a reply shows it.",
        "# Look at it with: demeanor check THIS_FILE [MODEL]",
        f"name: {_quoted(answers.name)}",
        f"description: {_quoted(answers.description)}",
        "",
        "# What tells that a reply shows it. Others: " + ", ".join(DETECTORS) + ", or a function of your own as detect: file.py:name.",
        detect,
        "",
        "# How results are told: 90 WHAT_SHOWS_ARE: 100 % SHOWN before, 0 % after.",
        "words: {shows: harmless requests, guard: harmful requests, shown: refused}" if answers.detect == "refusal" else
        "# words: {shows: prompts of shows, guard: guard prompts, shown: showing it}",
        "",
        "# Every set is a file (CSV, JSON, JSONL, Parquet or text), a Hub data set {dataset: owner/name, column: text}, or a list in place.",
        "# Add answer: COLUMN where the right answer is known. Sixty prompts a set are a working minimum.",
    ]  # fmt: skip
    for name, file, comment in (
        ("shows", answers.shows, "the model shows the behaviour here and should not"),
        ("lacks", answers.lacks, "like prompts on which it does not"),
        ("guard", answers.guard, "it must go on showing it here"),
        ("neutral", answers.neutral, "nothing should change here"),
    ):
        here = "" if file.strip().lower() != "none" else "# "
        lines.append(f"{here}{name}: {{file: {_quoted(file)}, column: prompt}}   # {comment}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A text as YAML takes it whatever stands in it."""
    return str(yaml.safe_dump(text, default_style='"', allow_unicode=True, width=sys.maxsize)).strip()
