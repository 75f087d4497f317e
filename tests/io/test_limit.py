"""A limit on foreign code: what has no end is stopped, what has one is not, and nothing is left behind."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import pytest

from demeanor.io import limit
from demeanor.io.limit import Endless, limited


def turn_forever() -> None:
    while True:
        with suppress(Exception):  # as foreign code may do
            sum(range(100))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "SECONDS", 0.05)
    monkeypatch.setattr(limit, "LOOK", 0.01)


def test_what_ends_gives_its_value_or_its_error() -> None:
    assert limited(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        limited(lambda: 1 // 0)


def test_what_does_not_end_is_stopped_and_the_next_call_is_not() -> None:
    for _ in range(3):
        with pytest.raises(Endless):
            limited(turn_forever)
        assert all(limited(lambda: 3) == 3 for _ in range(100))
        assert sum(range(10_000)) == 49_995_000  # nothing is raised later
    assert not limit._watched


def test_waiting_is_not_computing() -> None:
    waited = threading.Event()
    assert limited(lambda: waited.wait(0.3)) is False


def test_memory_is_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "SECONDS", 60.0)
    monkeypatch.setattr(limit, "MEMORY", 2**26)
    held: list[bytes] = []

    def fill() -> None:
        for _ in range(5):
            held.append(b"x" * 2**26)  # so much at once never comes from what was freed before
            time.sleep(0.01)
        while True:
            pass

    with pytest.raises(Endless):
        limited(fill)
