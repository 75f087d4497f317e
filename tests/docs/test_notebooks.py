"""The notebooks run, from the first cell to the last, and are committed without what they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from plotly.graph_objects import Figure

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "docs" / "notebooks").glob("*.ipynb"))


def code(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def run(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """The names that the cells define, in one namespace, and what the last expression of each is."""
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for number, cell in enumerate(code(path)):
        source = "".join(cell["source"])
        lines = source.splitlines()
        try:
            last = compile(lines[-1], f"{path.name}, cell {number}", "eval")
        except SyntaxError:
            exec(compile(source, f"{path.name}, cell {number}", "exec"), names)
            continue
        exec(compile("\n".join(lines[:-1]), f"{path.name}, cell {number}", "exec"), names)
        shown.append(eval(last, names))
    return names, shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_committed_without_outputs_and_uses_the_public_api(path: Path) -> None:
    for cell in code(path):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        assert "from demeanor" not in "".join(cell["source"])


@pytest.mark.long
def test_the_walk_through_selfcontrol_brings_answers_back(capsys) -> None:  # type: ignore[no-untyped-def]
    names, shown = run(next(path for path in NOTEBOOKS if path.name == "selfcontrol.ipynb"))
    assert sum(isinstance(each, Figure) for each in shown) == 4
    assert names["rates"]["SelfControl"] >= 0.75
    assert names["rates"]["prefix"] >= 0.75  # learned from other prompts
    learned = names["learned"].measurements["after"].after
    assert learned["guard_rate"].value >= 0.9
    assert learned["answers_neutral"].value >= 0.9
    assert names["pairs"]
    assert all(pair.chosen == pair.prompt.answer for pair in names["pairs"])
    assert "chosen" in capsys.readouterr().out


def named(name: str) -> Path:
    return next(path for path in NOTEBOOKS if path.name == name)


@pytest.mark.long
def test_five_lines_answer_and_keep_the_guard(capsys) -> None:  # type: ignore[no-untyped-def]
    names, shown = run(named("five-lines.ipynb"))
    assert any(isinstance(each, Figure) for each in shown)
    after = names["measured"].after
    assert after["shows_rate"].value <= 0.05
    assert after["guard_rate"].value >= 0.95
    assert names["untouched"] != names["controlled"]
    assert capsys.readouterr().out.splitlines() == [names["untouched"], names["controlled"]]


@pytest.mark.long
def test_a_behaviour_of_lists_is_found_and_lessened() -> None:
    names, _ = run(named("own-behaviour.ipynb"))
    measured = names["measured"]
    assert measured.before["shows_rate"].value >= 0.4
    assert measured.after["shows_rate"].value < measured.before["shows_rate"].value
    assert measured.after["answers_neutral"].value >= 0.9


@pytest.mark.long
def test_all_ways_stand_in_one_table(capsys) -> None:  # type: ignore[no-untyped-def]
    names, shown = run(named("compare.ipynb"))
    rows = capsys.readouterr().out.splitlines()
    assert [row.split("  ")[0] for row in rows[1:]] == list(names["measured"])
    assert any(isinstance(each, Figure) for each in shown)
    guard = {name: found.after["guard_rate"].value for name, found in names["measured"].items()}
    assert guard["ablated"] < 0.5  # what an ablation costs
    assert min(guard["behind a gate"], guard["selective"]) >= 0.9


@pytest.mark.long
def test_directions_are_drawn() -> None:
    names, shown = run(named("directions.ipynb"))
    assert sum(isinstance(each, Figure) for each in shown) == 5
    assert names["ablated"].values.abs().max() < 0.05  # nothing of it is in the stream
    assert names["plain"].values.abs().max() > 0.2
