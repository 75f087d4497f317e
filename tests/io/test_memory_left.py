"""What a control group leaves: what it holds of files is not taken from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from demeanor.io import memory


def group(folder: Path, most: str, used: int, files: int) -> Path:
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - files}\nactive_file {files // 4}\ninactive_file {files - files // 4}\n")
    return folder


def test_files_that_were_read_leave_as_much_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(memory, "GROUP", group(tmp_path, str(4 << 30), 1 << 30, 0))
    before = memory.available()
    monkeypatch.setattr(memory, "GROUP", group(tmp_path, str(4 << 30), 4 << 30, 3 << 30))
    assert memory.available() == before == 3 << 30


def test_a_group_without_a_limit_leaves_what_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = memory.available()
    monkeypatch.setattr(memory, "GROUP", group(tmp_path, "max", 1 << 30, 0))
    assert (memory.available() is None) == (free is None)
