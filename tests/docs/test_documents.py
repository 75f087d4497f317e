"""What the documents show is what the program takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from demeanor.behaviours import BehaviourFile
from demeanor.cli import app

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "docs" / "behaviours.md")}
BLOCKS = [(name, block) for name, text in TEXTS.items() for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]


@pytest.mark.parametrize(("name", "block"), BLOCKS)
def test_every_yaml_block_is_a_behaviour_file_or_part_of_one(name: str, block: str) -> None:
    values = yaml.safe_load(block)
    rest = {"name": "example", "shows": ["a"], "lacks": ["b"]}
    BehaviourFile.model_validate({**rest, **values})


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^demeanor ([a-z]+)", "\n".join(TEXTS.values()), re.MULTILINE))))
def test_every_command_of_the_documents_exists(line: str) -> None:
    assert line in get_command(app).commands  # type: ignore[attr-defined]
