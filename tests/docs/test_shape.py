"""The shape of the house, as docs/architecture.md tells it: short functions and files, wings and nothing beside them."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE, TESTS = ROOT / "src" / "demeanor", ROOT / "tests"
FUNCTION_LINES, FILE_LINES = 60, 300
# Longer files, each with the reason why it is one file.
LONG = {
    "selfcontrol/searching.py": "one algorithm: a search, its sizes, first tokens and choice",
}
LOOSE = {"__init__.py", "__main__.py", "arrays.py", "deferred.py", "errors.py", "progress.py", "py.typed", "version.py"}
NO_WING = {"organism"}  # in the package: the embedded model and its data; in the tests: what trains it
SECTIONS = {"algebra": {3, 5}, "structure": {1}, "selfcontrol": {8}, "train": {9}}  # of algorithms.md, for the wings of one subject


def wings() -> set[str]:
    """The wings that the import contract names."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return {name.strip() for layer in layers for name in layer.split("|")}


def sources() -> Iterator[Path]:
    yield from sorted(path for path in PACKAGE.rglob("*.py"))


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Every function of a file with its number of lines, decorators left out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_every_function_fits_a_screen() -> None:
    long = {
        f"{path.relative_to(PACKAGE)}: {name}": lines for path in sources() for name, lines in functions(path) if lines > FUNCTION_LINES
    }
    assert not long, f"split what is over {FUNCTION_LINES} lines"


def test_long_files_are_listed_with_the_reason() -> None:
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    long = {name: count for name, count in lines.items() if count > FILE_LINES}
    assert set(long) == set(LONG), f"split what is over {FILE_LINES} lines, or list it with the reason; strike what is shorter now"


def test_the_package_holds_wings_and_little_beside_them() -> None:
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    folders = {name for name in entries if (PACKAGE / name).is_dir()}
    assert entries - folders <= LOOSE, "a module belongs to a wing"
    assert folders - NO_WING <= wings(), "a wing stands in the import contract"


def test_tests_mirror_the_wings() -> None:
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= wings() | NO_WING | {"docs"}, "a folder of tests is named after a wing"


def test_no_two_files_of_tests_have_one_name() -> None:
    names = Counter(path.name for path in TESTS.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == [], "pytest takes one of them only"


@pytest.mark.parametrize(
    "path", [path for path in sources() if "algorithms.md" in path.read_text(encoding="utf-8")], ids=lambda path: path.name
)
def test_sections_that_comments_name_are_those_of_the_page(path: Path) -> None:
    page = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    known = {int(number) for number in re.findall(r"^## (\d+)\.", page, re.MULTILINE)}
    wing = path.relative_to(PACKAGE).parts[0]
    for phrase in re.findall(r"algorithms\.md, sections? ([\d and,]+)", path.read_text(encoding="utf-8")):
        named = {int(number) for number in re.findall(r"\d+", phrase)}
        assert named
        assert named <= SECTIONS.get(wing, known), f"{phrase} is another subject"


def test_every_path_that_the_documents_name_exists() -> None:
    """Paths in backticks of the architecture page and the decisions, relative to the package or the repository."""
    missing = []
    for page in (ROOT / "docs" / "architecture.md", *sorted((ROOT / "docs" / "decisions").glob("*.md"))):
        for name in re.findall(r"`([a-z_]+(?:/[a-z_]+)*/(?:[a-z_]+\.(?:py|md|yaml))?)`", page.read_text(encoding="utf-8")):
            if not any((folder / name).exists() for folder in (PACKAGE, ROOT)):
                missing.append(f"{page.name}: {name}")
    assert missing == []


def test_the_index_of_decisions_names_every_record() -> None:
    folder = ROOT / "docs" / "decisions"
    records = sorted(path.name for path in folder.glob("0*.md"))
    assert re.findall(r"\]\((0[^)]+)\)", (folder / "README.md").read_text(encoding="utf-8")) == records
    for number, name in enumerate(records, start=1):
        text = (folder / name).read_text(encoding="utf-8")
        assert text.startswith(f"# {number}. ")
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Consequence"]
        assert len(text.splitlines()) <= 40, "a record is one short page"


def test_no_text_holds_what_a_merge_left() -> None:
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *PACKAGE.rglob("*.py"), *TESTS.rglob("*.py")]
    left = [str(path.relative_to(ROOT)) for path in texts if re.search(r"^(<{7}|>{7}) ", path.read_text(encoding="utf-8"), re.M)]
    assert not left
