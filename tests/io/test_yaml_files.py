"""YAML: no more values than the text shows, and every mistake in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import demeanor as dm
from demeanor.cli.from_model import _value
from demeanor.errors import DataError
from demeanor.io.display import LONGEST, shown
from demeanor.io.plan import read_values
from demeanor.io.yaml_files import read_yaml
from demeanor.models import Loading

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None)
@given(values)
def test_what_is_written_is_read(value: Any) -> None:
    assert read_yaml(yaml.safe_dump(value, allow_unicode=True)) == value
    assert len(shown(value)) <= LONGEST


def test_aliases_are_read_as_what_they_name() -> None:
    assert read_yaml("a: &x {b: [1, 2]}\nc: *x\nd: {<<: *x, e: 3}") == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}, "d": {"b": [1, 2], "e": 3}}


def bomb(kind: str) -> str:
    """A few lines whose aliases stand for 10^9 values."""
    opening = {"list": "[x,x,x,x,x,x,x,x,x,x]", "mapping": "{a: x, b: x, c: x}"}[kind]
    again = {"list": "[" + ",".join(["*a{n}"] * 10) + "]", "mapping": "{{" + ", ".join(f"k{i}: *a{{n}}" for i in range(10)) + "}}"}[kind]
    return f"a0: &a0 {opening}\n" + "".join(f"a{n}: &a{n} {again.format(n=n - 1)}\n" for n in range(1, 9))


WRONG = {
    "aliases of lists": (bomb("list"), "its aliases stand for"),
    "aliases of mappings": (bomb("mapping"), "its aliases stand for"),
    "a circle": ("a: &a [*a]", "itself a part of"),
    "a circle of two": ("a: &a {b: &b [*a]}", "itself a part of"),
    "too deep": ("{a: " * 2_000, "nested too deeply"),
    "twice": ("a: 1\na: 2", "the key 'a' is given twice"),
    "no date": ("a: 2024-99-99", "month must be in 1..12"),
    "no such alias": ("a: *b", "undefined alias"),
    "a tag": ("a: !!python/object:os.system {}", "could not determine a constructor"),
    "a list as a key": ("{[a]: b}", "unhashable key"),
    "open": ("a: [", "expected the node content"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_told_in_one_line_wherever_yaml_is_read(tmp_path: Path, kind: str) -> None:
    text, told = WRONG[kind]
    (tmp_path / "b.yaml").write_text(text)
    readers = [lambda: dm.behaviour(tmp_path / "b.yaml"), lambda: read_values(tmp_path / "b.yaml")]
    if "\n" not in text:
        readers.append(lambda: _value(Loading.model_fields["chat_template_args"], [f"x={text}"]))
    for read in readers:
        with pytest.raises(DataError, match="not valid YAML: .*" + told) as caught:
            read()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 800 or kind == "too deep"


def test_a_message_never_prints_a_whole_value(tmp_path: Path) -> None:
    many = "[" + ", ".join(["x"] * 5000) + "]"
    for sets in (f"shows: [{{prompt: p, answer: {many}}}]\nlacks: [b]", f"shows: {{prompts: [a], where: {{a: {{b: {many}}}}}}}\nlacks: [b]"):
        (tmp_path / "b.yaml").write_text(f"name: x\n{sets}\n")
        with pytest.raises(DataError) as caught:
            dm.behaviour(tmp_path / "b.yaml")
        assert len(str(caught.value)) < 400 + len(str(tmp_path))
