"""What differs between two searches is said."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from demeanor.errors import DataError
from demeanor.search.reproducing import differences, read_result

RESULT: dict[str, Any] = {
    "plan": {"model": "organism", "behaviour": "over-refusal"}, "digest": "a", "trials": 9, "structure": "s", "versions": {"torch": "2.13.0"},
    "environment": {"optuna": "5.0.0", "threads": 1}, "scores": {"shows_rate": 0.0, "drift_text": None},
    "front": [{"setting": {"layer": 2}, "confirmed": {"left": 0.1, "guard": None}}],
}  # fmt: skip


def test_the_same_search_differs_in_nothing() -> None:
    nearly = copy.deepcopy(RESULT)
    nearly["front"][0]["confirmed"]["left"] += 1e-9
    assert differences(RESULT, nearly) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda r: r["versions"].update(torch="2.14.0"), "versions torch: 2.13.0 before, 2.14.0 now."),
        (lambda r: r["environment"].update(numpy="2"), "environment numpy: None before, 2 now."),
        (lambda r: r.update(structure="t"), "structure: s before, t now."),
        (lambda r: r.update(digest="b"), "The trials are others: the study proposed other settings, or in another order."),
        (lambda r: r["front"][0]["confirmed"].update(left=0.2), "left of point 0: 0.1 before, 0.2 now."),
        (lambda r: r["front"][0]["setting"].update(layer=3), "The front has 1 points, 0 of the 1 that it had before."),
        (lambda r: r["scores"].update(shows_rate=0.5), "shows_rate of the picked point on test: 0.0 before, 0.5 now."),
    ],
)
def test_everything_that_differs_is_named(change: Any, sentence: str) -> None:
    other = copy.deepcopy(RESULT)
    change(other)
    assert differences(RESULT, other) == [sentence]


def test_a_file_that_no_search_wrote_is_refused(tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text(json.dumps(RESULT))
    assert read_result(tmp_path) == read_result(tmp_path / "search.json") == RESULT
    for text in ("{}", "[]", "{"):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(DataError, match=r"name the folder of a search, or its search\.json\.$"):
            read_result(tmp_path / "other.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_result(tmp_path / "none.json")
