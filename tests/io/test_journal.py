"""A journal recalls what was computed, and a kill in the middle of a line costs that line only."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demeanor.io.journal import Journal

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda values: st.lists(values, max_size=3),
    max_leaves=8,
)


def not_again() -> None:
    pytest.fail("computed again")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(values=st.lists(VALUES, min_size=1, max_size=6), cut=st.integers(0, 400))
def test_whole_lines_are_recalled_and_the_rest_is_computed(tmp_path: Path, values: list[object], cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    path.unlink(missing_ok=True)
    first = Journal(path)
    for number, value in enumerate(values):
        assert first.recall(("value", number), lambda value=value: value) == value  # type: ignore[misc]
    content = path.read_bytes()
    path.write_bytes(content[: max(0, len(content) - cut)])
    whole = path.read_bytes().count(b"\n")
    again = Journal(path)
    assert len(again) == whole
    for number, value in enumerate(values):
        compute = not_again if number < whole else lambda value=value: value  # type: ignore[misc]
        assert again.recall(("value", number), compute) == value
    assert again.recalled == whole
    assert path.read_bytes() == content


def test_what_a_value_depends_on_tells_it_from_others(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    assert journal.recall(("replies", [1, 2]), lambda: "one") == "one"
    assert journal.recall(("replies", [1, 3]), lambda: "other") == "other"
    assert journal.recall(("replies", [1, 2]), not_again) == "one"


def test_without_a_path_nothing_is_kept() -> None:
    journal = Journal()
    assert not journal.keeps
    assert [journal.recall("key", lambda: 1), journal.recall("key", lambda: 2)] == [1, 2]
