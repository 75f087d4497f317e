"""`demeanor --version` says what results depend on."""

from __future__ import annotations

import json
import platform

import torch
import transformers

from demeanor import __version__
from demeanor.cli import versions


def test_the_first_line_is_the_program(demeanor) -> None:  # type: ignore[no-untyped-def]
    ended = demeanor("--version")
    assert ended.code == 0
    assert ended.out.splitlines()[0] == f"demeanor {__version__}"
    assert f"torch {torch.__version__}" in ended.out.splitlines()


def test_json_has_every_library_and_every_extra(demeanor) -> None:  # type: ignore[no-untyped-def]
    told = json.loads(demeanor("--version", "--json").out)
    assert told["python"] == platform.python_version()
    assert told["transformers"] == transformers.__version__
    assert {"serve", "train", "search"} <= set(told["extras"])
    assert "dev" not in told["extras"]


def test_an_extra_that_is_not_there_is_named(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    needs = ["torch>=2", "no-such-library>=1; extra == 'serve'", "torch>=2; extra == 'train'"]
    monkeypatch.setattr(versions, "_requirements", lambda: needs)
    assert versions.extras()["serve"] == {"no-such-library": None}
    assert versions.lines()[-1] == "extras that are not installed: serve"
    assert any(line.startswith("extra train: torch") for line in versions.lines())
