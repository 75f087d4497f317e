"""What a user installs: the package with its types, the embedded model and its data, and nothing that makes them."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.builders.wheel import WheelBuilder

from release.check_wheel import build

ROOT = Path(__file__).resolve().parents[2]
MODEL = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture(scope="module")
def shipped() -> dict[str, Path]:
    """The files of the wheel, by their names in it."""
    return {file.distribution_path: Path(file.path) for file in WheelBuilder(str(ROOT)).recurse_included_files()}


def test_types_are_told(shipped: dict[str, Path]) -> None:
    assert "demeanor/py.typed" in shipped


def test_the_embedded_model_runs_from_the_wheel(shipped: dict[str, Path]) -> None:
    assert {f"demeanor/organism/model/{name}" for name in MODEL} <= set(shipped)
    sets = {name for name in shipped if name.startswith("demeanor/organism/data/")}
    assert {"demeanor/organism/data/over_refused.jsonl", "demeanor/organism/data/neutral.jsonl"} <= sets
    assert {name for name in shipped if name.startswith("demeanor/organism/") and name.endswith(".py")} <= {"demeanor/organism/__init__.py"}


def test_nothing_but_the_package_is_in_it(shipped: dict[str, Path]) -> None:
    assert {name.split("/")[0] for name in shipped} == {"demeanor"}
    assert not [name for name in shipped if "__pycache__" in name]
    assert sum(path.stat().st_size for path in shipped.values()) < 16e6


@pytest.mark.slow
def test_the_wheel_that_the_sdist_builds_is_the_same_and_small(shipped: dict[str, Path], tmp_path: Path) -> None:
    wheel = build(tmp_path)
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == set(shipped)
    assert wheel.stat().st_size < 12e6


def test_the_package_says_what_it_is(shipped: dict[str, Path]) -> None:
    metadata = WheelBuilder(str(ROOT)).metadata.core
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.keywords
    assert any(classifier.startswith("Programming Language") for classifier in metadata.classifiers)
