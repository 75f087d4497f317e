"""What is kept for other workers is made once, and never outlives the sources it came from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import kept


@pytest.mark.parametrize("change", ["edited", "renamed", "added", "data"])
def test_any_change_of_the_package_is_another_key(tmp_path: Path, change: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "find.py").write_text("LITTLE = 1.0\n")
    (tmp_path / "data" / "shows.jsonl").write_text("{}\n")
    before = kept.fingerprint(tmp_path)
    assert kept.fingerprint(tmp_path) == before
    if change == "edited":
        (tmp_path / "find.py").write_text("LITTLE = 1.5\n")
    elif change == "renamed":
        (tmp_path / "find.py").rename(tmp_path / "look.py")
    elif change == "added":
        (tmp_path / "new.py").write_text("")
    else:
        (tmp_path / "data" / "shows.jsonl").write_text("[]\n")
    assert kept.fingerprint(tmp_path) != before


@pytest.fixture
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "kept_root", lambda: tmp_path)


@pytest.mark.usefixtures("_here")
def test_it_is_made_once_and_its_files_stay() -> None:
    folders: list[Path] = []

    def make(folder: Path) -> dict[str, Path]:
        folders.append(folder)
        (folder / "model").write_text("weights")
        return {"model": folder / "model"}

    with ThreadPoolExecutor(4) as workers:
        values = list(workers.map(lambda _: kept.kept("run", make), range(8)))
    assert len(folders) == 1
    assert all(value["model"].read_text() == "weights" for value in values)
    assert kept.kept("run", make, "other arguments")
    assert len(folders) == 2


@pytest.mark.usefixtures("_here")
def test_what_failed_is_made_again() -> None:
    attempts: list[bool] = []

    def make(folder: Path) -> bool:
        attempts.append((folder / "half").exists())
        (folder / "half").write_text("")
        if len(attempts) == 1:
            raise OSError("the disk is full")
        return True

    with pytest.raises(OSError, match="full"):
        kept.kept("run", make)
    assert kept.kept("run", make)
    assert attempts == [False, False]
