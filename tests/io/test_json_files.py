"""What is written as JSON is JSON to every reader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demeanor.io.json_files import json_text, write_json, write_json_lines


def refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    values = {"kl": float("nan"), "scores": [1.5, float("inf"), (2, None)], "text": "NaN"}
    write_json(tmp_path / "scores.json", values)
    text = (tmp_path / "scores.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == {"kl": None, "scores": [1.5, None, [2, None]], "text": "NaN"}
    assert text == json_text(values) + "\n"


def test_lines_are_one_row_each_with_text_as_it_is(tmp_path: Path) -> None:
    rows = [{"reply": "naïve\nsecond line", "gain": float("-inf")}, {"reply": "→"}]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"reply": "naïve\nsecond line", "gain": None}, {"reply": "→"}]
    assert "naïve" in lines[0]


@pytest.mark.parametrize("number", [0.1 + 0.2, 1e-300, 2**53 + 1])
def test_numbers_come_back_to_the_digit(number: float, tmp_path: Path) -> None:
    write_json(tmp_path / "n.json", number)
    assert json.loads((tmp_path / "n.json").read_text()) == number
