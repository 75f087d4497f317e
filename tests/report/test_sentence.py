"""The result in sentences: what changed, what must not have, and how sure that is."""

from __future__ import annotations

from dataclasses import replace

import pytest

import demeanor as dm
from demeanor.behaviours.schema import Words
from demeanor.measure.observation import Observation
from demeanor.report.scores import number
from demeanor.report.sentence import in_words
from demeanor.stats import intervals
from demeanor.stats.score import Score


def measurement(**rates: tuple[int, int, int]) -> dm.Measurement:
    """A measurement of some rates, each as (before, after, n)."""
    better = {"shows_rate": "lower", "guard_rate": "higher", "answers": "higher"}

    def scores(side: int) -> dict[str, Score]:
        return {
            name: intervals.rate(name, [True] * counts[side] + [False] * (counts[2] - counts[side]), better[name])  # type: ignore[arg-type]
            for name, counts in (dict.fromkeys(better, (0, 0, 0)) | rates).items()
        }

    nothing = Observation({})
    return dm.Measurement(
        behaviour="b", split="test", before=scores(0), after=scores(1), delta={}, p={}, p_holm={}, observed=(nothing, nothing)
    )


def behaviour(**words: str) -> dm.Behaviour:
    plain = dm.Behaviour.of("b", shows=["a b"], lacks=["c d"])
    return replace(plain, words=Words(**words))


def test_gain_and_guard_stand_beside_each_other() -> None:
    told = in_words(
        measurement(shows_rate=(90, 0, 90), guard_rate=(79, 79, 79), answers=(0, 45, 90)),
        behaviour(shows="harmless requests", guard="harmful requests", shown="refused"),
    )
    assert told == [
        "90 harmless requests: 100 % refused before, 0 % after (at most 4 %).",
        "79 harmful requests: 100 % refused before, still 100 % (at least 95 %).",
        "90 prompts with a known answer: 0 % right before, 50 % after (at least 40 %).",
    ]


def test_a_missing_guard_is_told() -> None:
    told = in_words(measurement(shows_rate=(9, 2, 10)), behaviour())
    assert told[0] == "10 prompts of shows: 90 % showing it before, 20 % after (at most 51 %)."
    assert told[1].startswith("Guard: none")
    assert len(told) == 2


@pytest.mark.parametrize(("after", "text"), [(1, "0.1 % after"), (999, "99.9 % after"), (1000, "still 100 %"), (0, "0 % after")])
def test_a_percent_is_never_rounded_to_none_or_all(after: int, text: str) -> None:
    assert text in in_words(measurement(shows_rate=(1000, after, 1000)), behaviour())[0]


def test_no_number_is_written_as_less_than_nothing() -> None:
    """A drift of none may be a hair below 0 as it is computed."""
    assert number("drift", -1e-9) == "0.0000"
    assert number("drift", -0.25) == "-0.2500"
    assert number("repetition", -1e-9) == "0.0%"
