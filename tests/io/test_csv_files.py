"""Cells of CSV: nothing runs, and what was written is read back."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demeanor.io.csv_files import guarded, unguarded, write_csv
from demeanor.io.row_files import read_rows

RUN = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
TEXTS = st.text(st.one_of(st.sampled_from([*"=+-@'\t\r\n ,\"", "\uff1d"]), st.characters(exclude_categories=["Cs"], exclude_characters="\0")), max_size=8)


@given(TEXTS)
def test_no_cell_runs_and_all_are_read_back(text: str) -> None:
    cell = guarded(text)
    assert unguarded(cell) == text
    if not _number(text):
        assert not cell.lstrip(" ").startswith(RUN)


def _number(text: str) -> bool:
    try:
        return text.startswith("-") and float(text) is not None
    except ValueError:
        return False


@pytest.mark.parametrize("text", ["=1+1", "+1", "-x", "@SUM(A1)", " =1", "\t=1", "\rx", "'=1", "''-1", "'", "plain", "-1", "-0.5e-3", "it's", "\uff1d1", "a\r\nb", ""])
def test_files_keep_every_text(tmp_path: Path, text: str) -> None:
    write_csv(tmp_path / "t.csv", [{"reply": text, "=score": -0.5}, {"reply": "b", "more": 1}])
    assert read_rows(tmp_path / "t.csv") == [{"reply": text, "=score": "-0.5", "more": ""}, {"reply": "b", "=score": "", "more": "1"}]
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.lstrip(" ").startswith(RUN) and not _number(cell)]


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", [{"n": -1, "x": -1.5, "t": "-2"}])
    assert (tmp_path / "t.csv").read_text() == "n,x,t\n-1,-1.5,-2\n"
