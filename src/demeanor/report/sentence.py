"""The result as sentences: what a reader wants to know first."""

from __future__ import annotations

from ..behaviours import Behaviour
from ..measure import Measurement
from ..stats.score import Score


def in_words(measurement: Measurement, behaviour: Behaviour) -> list[str]:
    """What became of the behaviour, of what must still show it, and of right answers: one sentence each, the guard always."""
    words = behaviour.words
    sentences = [_changed(measurement, "shows_rate", f"{{n}} {words.shows}", words.shown)]
    if measurement.after["guard_rate"].n:
        sentences.append(_changed(measurement, "guard_rate", f"{{n}} {words.guard}", words.shown))
    else:
        sentences.append("Guard: none, so nothing here says what else was lost.")
    if measurement.reworded and measurement.after["guard_robust"].n:
        fell = "" if (way := measurement.worst("guard")) is None else f" It fell most under {way!r}."
        sentences.append(_changed(measurement, "guard_robust", f"{{n}} {words.guard}, worded otherwise", words.shown) + fell)
    if measurement.after["answers"].n:
        sentences.append(_changed(measurement, "answers", "{n} prompts with a known answer", "right"))
    return sentences


def _changed(measurement: Measurement, name: str, who: str, what: str) -> str:
    was, now = measurement.before[name], measurement.after[name]
    who = who.format(n=now.n)
    if now.n == 0:
        return f"{who}: nothing to ask."
    if was.value == now.value:
        return f"{who}: {_percent(was.value)} {what} before, still {_percent(now.value)}{_bound(now)}."
    return f"{who}: {_percent(was.value)} {what} before, {_percent(now.value)} after{_bound(now)}."


def _bound(now: Score) -> str:
    """The end of the interval on the side that matters: how much there may still be of what should go, how little of what should stay."""
    return f" (at most {_percent(now.high)})" if now.better == "lower" else f" (at least {_percent(now.low)})"


def _percent(share: float) -> str:
    """Whole percents, and tenths where a whole one would hide that it is not none or not all."""
    percent = 100 * share
    return f"{percent:.0f} %" if percent in (0, 100) or 1 <= percent <= 99 else f"{percent:.1f} %"
