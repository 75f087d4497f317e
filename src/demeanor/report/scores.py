"""How scores are written: what each means to a reader, numbers, intervals, rows."""

from __future__ import annotations

from collections.abc import Mapping

from ..measure import Measurement
from ..measure.battery import NAME, SKILLS
from ..stats.score import Score

# What each score means to a reader, in the order of the table.
MEANING = {
    "shows_rate": "shows: exhibited",
    "guard_rate": "guard: exhibited",
    "lacks_rate": "lacks: exhibited",
    "engaged_shows": "shows: replies that engage",
    "answers_shows": "shows: right answers",
    "answers_neutral": "neutral: right answers",
    "answers": "both: right answers",
    "drift": "drift (nats/token)",
}


# What a change may cost besides: of ordinary replies, and of the base's own replies in the changed model's eyes.
COSTS = {
    "drift_text": "drift on plain prose (nats/token)",
    "first_token_kl": "first-token KL (nats)",
    "perplexity": "perplexity of base replies",
    "repetition": "repeated 4-grams",
    "other_script": "replies in another script",
    "empty": "empty replies",
    "length": "reply tokens",
}


# The built-in battery, where it was asked.
BATTERY = {NAME: f"{NAME}: right answers"} | {f"{NAME}_{skill}": f"{NAME}, {skill}" for skill in SKILLS}


PLAIN = {"drift": 4, "drift_text": 4, "first_token_kl": 4, "perplexity": 3, "length": 1}  # digits of scores that are no shares


HEADINGS = ("", "before", "after", "95 % interval", "n")


ARROW = {"lower": "\u2193", "higher": "\u2191", "neither": ""}


def number(name: str, value: float) -> str:
    return f"{value:.{PLAIN[name]}f}" if name in PLAIN else f"{100 * value:.1f}%"


def interval(score: Score) -> str:
    return f"[{number(score.name, score.low)}, {number(score.name, score.high)}]"


def rows(measurement: Measurement, meaning: Mapping[str, str] = MEANING) -> list[tuple[str, str, str, str, str]]:
    """(what and which way is better, before, after, interval of after, n) per score that was asked for; a set that is missing
    says "none"."""
    cells = []
    for name, what in meaning.items():
        if name not in measurement.after:
            continue
        was, now = measurement.before[name], measurement.after[name]
        if now.n == 0:
            cells.append((f"{what} {ARROW[now.better]}", "none", "none", "", "0"))
        else:
            cells.append((f"{what} {ARROW[now.better]}", number(name, was.value), number(name, now.value), interval(now), str(now.n)))
    return cells
