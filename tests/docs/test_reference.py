"""The reference of the site says of every public name and every command what the program says of it."""

from __future__ import annotations

import re

import pytest
from typer.main import get_command

import demeanor as dm
from demeanor.cli import app
from pages import commands, python


@pytest.fixture(scope="module")
def told() -> str:
    return python.reference()


@pytest.mark.parametrize("name", [name for name in dm.__all__ if not name.startswith("_")])
def test_every_public_name_is_told(told: str, name: str) -> None:
    section = re.search(rf"^### dm\.{name}\n(.*?)(?=^###? )", told + "\n## ", re.DOTALL | re.MULTILINE)
    assert section, name
    assert len(section[1].strip()) > 20, f"{name} has no docstring"


def test_shapes_methods_and_defaults_are_told(told: str) -> None:
    assert "values [prompt, site, d_model]" in told
    assert "`.chat(" in told  # of a class that Session is made of
    assert "tokens: Tokens = 'last_and_reply'" in told
    assert "| `layer` |" in told  # a field of a plan


def test_every_command_and_option_is_told() -> None:
    page = commands.reference()
    for name, command in commands.every_command(get_command(app)):
        assert f"\n## {name}\n" in page
        for option in command.params:
            assert all(f"`{flag}`" in page for flag in option.opts if flag.startswith("--") and flag != "--help"), (name, option.opts)
