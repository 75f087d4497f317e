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
