"""How scores are written: what each means to a reader, numbers, intervals, rows."""

from __future__ import annotations

from collections.abc import Mapping

from ..behaviours import ROBUST_SETS
from ..measure import Measurement
from ..measure.battery import NAME, SKILLS
from ..measure.robustness import NAME as ALL
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
    "repetition_shows": "shows: repeated 4-grams",
    "shared_shows": "shows: 4-grams that other replies have",
    "other_script": "replies in another script",
    "empty": "empty replies",
    "length": "reply tokens",
}


# The built-in battery, where it was asked.
BATTERY = {NAME: f"{NAME}: right answers"} | {f"{NAME}_{skill}": f"{NAME}, {skill}" for skill in SKILLS}


def robust(measurement: Measurement) -> dict[str, str]:
    """What the scores of prompts that were worded otherwise mean, where these were asked: all of them together, then each rewording."""
    ways = (ALL, *measurement.reworded) if measurement.reworded else ()
    asked = [(of, way) for of in ROBUST_SETS for way in ways if measurement.after[f"{of}_{way}"].n]
    return {f"{of}_{way}": f"{of}, reworded: exhibited" if way == ALL else f"{of}, {way}" for of, way in asked}


def worst(measurement: Measurement) -> set[str]:
    """The names of the scores under the worst rewordings."""
    return {f"{of}_{way}" for of in ROBUST_SETS if (way := measurement.worst(of)) is not None}


WORST = "worst: the rewording under which guard falls most, and the one that leaves most of shows"


PLAIN = {"drift": 4, "drift_text": 4, "first_token_kl": 4, "perplexity": 3, "length": 1}  # digits of scores that are no shares


HEADINGS = ("", "before", "after", "95 % interval", "n")


ARROW = {"lower": "\u2193", "higher": "\u2191", "neither": ""}


def number(name: str, value: float) -> str:
    return f"{value:z.{PLAIN[name]}f}" if name in PLAIN else f"{100 * value:z.1f}%"


def interval(score: Score) -> str:
    return f"[{number(score.name, score.low)}, {number(score.name, score.high)}]"


def rows(measurement: Measurement, meaning: Mapping[str, str] = MEANING) -> list[tuple[str, str, str, str, str]]:
    """(what and which way is better, before, after, interval of after, n) per score that was asked for; a set that is missing
    says "none"."""
    cells, marked = [], worst(measurement)
    for name, what in meaning.items():
        if name not in measurement.after:
            continue
        was, now = measurement.before[name], measurement.after[name]
        what += " (worst)" if name in marked else ""
        if now.n == 0:
            cells.append((f"{what} {ARROW[now.better]}", "none", "none", "", "0"))
        else:
            cells.append((f"{what} {ARROW[now.better]}", number(name, was.value), number(name, now.value), interval(now), str(now.n)))
    return cells
