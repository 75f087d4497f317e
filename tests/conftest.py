"""Shared fixtures: the organism, and tiny random models of every proven family.

Whoever starts the workers reads this file too, before they begin. So libraries of models are imported where they are needed.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

import demeanor as dm
from demeanor import cli, progress
from demeanor.io.cache import CACHE
from kept import kept, kept_root, loaded
from outside import Ended

if TYPE_CHECKING:
    from demeanor.job.result import Run

T = TypeVar("T")
os.environ[CACHE] = str(kept_root() / "cache")  # of the tests alone; a proof is done once for the same sources
BEST_LAYERS = {"over-refusal": 2, "refusal": 3}  # of the organism: where a search of all layers finds each


@pytest.fixture(scope="session")
def organism() -> dm.Session:
    return loaded("organism")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The libraries that are read here stay to the end, so the garbage collector need not look through them, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What looks at a whole run or at what a search tries is slow, and so is what takes long, and what was tried on one family already.

    What looks at the run on over-refusal is long: the one on refusal is made for `make test` too.

    What looks at a whole run comes first: one worker makes the runs, and the other, which begins elsewhere, never waits for them.
    """
    from families import SLOW

    for item in items:
        values = getattr(getattr(item, "callspec", None), "params", {}).values()
        if "selective" in _fixtures(item):
            item.add_marker(pytest.mark.long)
        needs_much = bool({"selective", "whole", "trying"} & _fixtures(item))
        if needs_much or item.get_closest_marker("long") or any(value in SLOW for value in values if isinstance(value, str)):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: not _whole_runs(item))


def _whole_runs(item: pytest.Item) -> bool:
    return bool({"selective", "whole"} & _fixtures(item))


def _fixtures(item: pytest.Item) -> set[str]:
    return set(getattr(item, "fixturenames", ()))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`session` is a tiny model of each family in turn."""
    if "session" in metafunc.fixturenames:
        from families import FAMILIES

        metafunc.parametrize("session", list(FAMILIES), indirect=True)


class EachFamily(Mapping[str, T]):
    """Something for every family, made when it is first asked for."""

    def __init__(self, names: Iterable[str], make: Callable[[str], T]) -> None:
        self._names, self._make, self._made = list(names), make, dict[str, T]()

    def __getitem__(self, family: str) -> T:
        if family not in self._made:
            self._made[family] = self._make(family)
        return self._made[family]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A tiny model's folder, by family."""
    from families import FAMILIES, save_tiny

    root = tmp_path_factory.mktemp("tiny")
    return EachFamily(FAMILIES, lambda family: save_tiny(root / family, family))


@pytest.fixture(scope="session")
def tiny(tiny_folders: Mapping[str, Path]) -> Mapping[str, dm.Session]:
    """A session with a tiny model, by family."""
    return EachFamily(tiny_folders, lambda family: dm.load(tiny_folders[family], device="cpu"))


@pytest.fixture
def session(request: pytest.FixtureRequest, tiny: Mapping[str, dm.Session]) -> dm.Session:
    """A tiny model of each family in turn."""
    return tiny[request.param]


@pytest.fixture(scope="session")
def requests_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A behaviour file for any model: the organism's prompts, without being its preset."""
    from demeanor.models.loading import resolve

    data = Path(resolve("organism")[0]).parent / "data"
    path = tmp_path_factory.mktemp("requests") / "requests.yaml"
    sets = {"shows": "over_refused", "lacks": "plain", "guard": "guarded", "neutral": "neutral"}
    lines = [f"{name}: {{file: {data / file}.jsonl, answer: answer}}" for name, file in sets.items()]
    path.write_text("\n".join(["name: requests", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def selective() -> Run:
    """The main job on over-refusal, with a gate."""
    return kept("over-refusal", lambda folder: dm.run(dm.Plan(model="organism", behaviour="over-refusal", device="cpu", selective=False), folder / "run"))


@pytest.fixture(scope="session")
def whole() -> Run:
    """The main job on refusal."""
    return kept("refusal", lambda folder: dm.run(dm.Plan(model="organism", behaviour="refusal", device="cpu"), folder / "run"))


@pytest.fixture(scope="session")
def over_refusal(organism: dm.Session) -> dm.Direction:
    """The organism's direction for the preset `over-refusal`: what a search of all layers finds too (`finding/test_find.py`)."""
    return kept("direction", lambda _: dm.find(organism, dm.behaviour("over-refusal"), layer=BEST_LAYERS["over-refusal"]))


@pytest.fixture(autouse=True)
def _shown() -> Iterator[None]:
    """What is said is on standard error, as at the command line."""
    with progress.shown():
        yield


@pytest.fixture(scope="session")
def refusal_ablated(organism: dm.Session) -> dm.Control:
    """Refusal taken out of the organism, without a run: the best direction, ablated."""
    return kept("refusal-ablated", lambda _: dm.ablate(dm.find(organism, dm.behaviour("refusal"), layer=BEST_LAYERS["refusal"])))


@pytest.fixture
def demeanor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Runs the command as the shell would."""

    def run(*arguments: object, stdin: str = "") -> Ended:
        monkeypatch.setattr(sys, "argv", ["demeanor", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return Ended(int(caught.value.code or 0), captured.out, captured.err)

    return run
