"""Names that others bring: in files, in installed packages, and what is told where they cannot be used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demeanor.errors import DataError
from demeanor.io.registry import Registry, file_and_name, misfit

Package = Callable[..., Path]


@pytest.fixture
def registry() -> Registry[Callable[..., object], str]:
    registry: Registry[Callable[..., object], str] = Registry("tool", "tests.tools", "plain")
    registry.register("hammer", "heavy")(len)
    return registry


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """Installs a package by hand: its modules and the entry points that its metadata list."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def install(name: str, code: str, **entry_points: str) -> Path:
        (tmp_path / f"{name}.py").write_text(code)
        metadata = tmp_path / f"{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        points = "\n".join(f"{key} = {value}" for key, value in entry_points.items())
        (metadata / "entry_points.txt").write_text(f"[tests.tools]\n{points}\n")
        return tmp_path / f"{name}.py"

    yield install
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_registered_function_says_what_it_is(registry) -> None:  # type: ignore[no-untyped-def]
    assert (registry.named("hammer").factory, registry.named("hammer").traits) == (len, "heavy")
    with pytest.raises(DataError, match=r"no tool 'hamer' \(did you mean 'hammer'\?\); the tools are hammer"):
        registry.named("hamer")
    with pytest.raises(DataError, match='@tool\\("NAME"\\)'):
        registry.register(len, "heavy")


def test_a_function_in_a_file_is_found_by_its_path(registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mine.py").write_text("from dataclasses import dataclass\n@dataclass\nclass Saw:\n    teeth: int = 3\nSIZE = 4\n")
    saw = registry.named(f"{tmp_path / 'mine.py'}:Saw")
    assert saw.factory(5).teeth == 5
    assert saw.traits == "plain"
    monkeypatch.chdir(tmp_path)
    assert registry.named("mine.py:Saw").factory is saw.factory  # loaded once
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.py").write_text("class Saw: pass")
    assert registry.named("other/mine.py:Saw").factory is not saw.factory


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere.py:Saw", "names a file that is not there"),
        ("mine.py:Sow", r"is not in that file \(did you mean 'Saw'\?\); it defines Saw"),
        ("mine.py:SIZE", "is of type int and cannot be called"),
        ("mine.py:", "write mine.py:NAME"),
        ("mine.py", "write mine.py:NAME"),
    ],
)
def test_what_is_not_in_a_file_is_told(registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, told: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mine.py").write_text("from pathlib import Path\nclass Saw: pass\nSIZE = 4\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=told):
        registry.named(name)


def test_a_mistake_in_a_file_is_told_as_python_tells_it_every_time(registry, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "broken.py").write_text("1 / 0")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            registry.named(f"{tmp_path / 'broken.py'}:Saw")


def test_an_installed_package_brings_a_name(registry, package: Package) -> None:  # type: ignore[no-untyped-def]
    package("toolbox", "def saw():\n    return 3\n", saw="toolbox:saw")
    assert registry.named("saw").factory() == 3
    assert registry.names() == ("hammer", "saw")
    assert registry.own_names() == ()  # this registry has none of demeanor's


def test_a_package_that_cannot_be_used_breaks_no_other(registry, package: Package, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    package("sound", "def saw(): pass", saw="sound:saw")
    package("gone", "", drill="gone:drill")
    package("faulty", "import no_such_module_anywhere", plane="faulty:plane")
    package("odd", "SIZE = 4", size="odd:SIZE")
    assert {record.name for record in registry.every()} == {"hammer", "saw"}
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 3
    assert "the package gone" in told
    assert "the package faulty cannot be loaded (ModuleNotFoundError: No module named 'no_such_module_anywhere')" in told
    assert "the package odd is of type int" in told
    registry.every()
    assert capsys.readouterr().err == ""  # told once
    with pytest.raises(DataError, match="the package faulty"):
        registry.named("plane")


def test_two_packages_with_one_name_are_both_named(registry, package: Package) -> None:  # type: ignore[no-untyped-def]
    package("first", "def saw(): pass", saw="first:saw")
    package("second", "def saw(): pass", saw="second:saw")
    with pytest.raises(DataError, match="first and second"):
        registry.named("saw")


def test_the_parts_of_a_path_and_a_name() -> None:
    assert file_and_name("a/b.py:c") == (Path("a/b.py"), "c")
    assert file_and_name("C:/a b.py:c") == (Path("C:/a b.py"), "c")
    for other in ("b.py", "refusal", "owner/name:2", "b.py:", "b.yaml:c"):
        assert file_and_name(other) is None


def test_a_call_that_cannot_be_is_told_from_a_mistake_inside() -> None:
    def careful(one: int, *, other: int = 2) -> None:
        raise TypeError("inside")

    assert misfit(careful, 1, other=3) is None
    assert "too many positional arguments" in (misfit(careful, 1, 2) or "")
    assert "'third'" in (misfit(careful, 1, third=3) or "")
