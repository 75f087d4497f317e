"""What may stand under an output's name, who writes there, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from demeanor.errors import DataError
from demeanor.io.atomic import new_file, new_folder
from demeanor.io.checkpoint import open_checkpoint
from demeanor.io.claims import LOCK, REPLACED, UNFINISHED, claimed
from demeanor.io.row_files import read_rows
from demeanor.io.tensors import write_tensors


def write(target: Path, text: str = "new") -> None:
    with new_file(target) as work:
        work.write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_result_is_replaced_only_where_that_is_allowed(tmp_path: Path) -> None:
    target = tmp_path / "result.csv"
    write(target, "old")
    with pytest.raises(DataError, match="exists already"), claimed(target, "file", replaces=False):
        pass
    with claimed(target, "file", replaces=True):
        write(target)
    assert (target.read_text(), names(tmp_path)) == ("new", ["result.csv"])


@pytest.mark.parametrize(
    ("held", "goes"),
    [
        ({"plan.yaml": "old"}, True), ({"config.json": "{}", "README.md": "edited with demeanor"}, True), ({"config.json": "{}"}, False),
        ({"config.json": "{}", "README.md": "a model of others"}, False), ({"letters.txt": "demeanor"}, False), ({}, True),
    ],
)  # fmt: skip
def test_of_folders_only_results_are_replaced(tmp_path: Path, held: dict[str, str], goes: bool) -> None:
    target = tmp_path / "run"
    target.mkdir()
    for name, text in held.items():
        (target / name).write_text(text)
    with pytest.raises(DataError, match="exists already"), new_folder(target):
        pass
    if not goes:
        with pytest.raises(DataError, match="not a folder that demeanor wrote"), claimed(target, "folder", replaces=True):
            pass
        return
    with claimed(target, "folder", replaces=True), new_folder(target) as work:
        (work / "plan.yaml").write_text("new")
    assert (names(tmp_path), names(target), (target / "plan.yaml").read_text()) == (["run"], ["plan.yaml"], "new")


def test_links_and_devices_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("other")
    (tmp_path / "link").symlink_to("other")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "folder").symlink_to(tmp_path)
    for name, kind in (("link", "file"), ("dangling", "file"), ("folder", "folder")):
        with pytest.raises(DataError, match="is a link"), claimed(tmp_path / name, kind, replaces=True):  # type: ignore[arg-type]
            pass
    write(Path(os.devnull))
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert names(tmp_path) == ["dangling", "folder", "link", "other"]


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True) as reader:
        write(pipe, "through")
        assert reader.communicate()[0] == "through"
    assert names(tmp_path) == ["pipe"]


@pytest.mark.parametrize("spelt", ["rows.jsonl", "./rows.jsonl", "sub/../rows.jsonl", "twin.jsonl"])
def test_an_input_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelt: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"prompt": "hello"}\n')
    os.link(tmp_path / "rows.jsonl", tmp_path / "twin.jsonl")  # a second name of the same file
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="is read by the same command"), claimed(Path(spelt), "file", replaces=True):
        read_rows(tmp_path / "rows.jsonl")
    assert "hello" in (tmp_path / "rows.jsonl").read_text()


def test_an_output_does_not_lie_in_the_model_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="which is read by the same command"), claimed(tmp_path / "out", "folder", replaces=False):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_cannot_be_written_is_told_before_the_work(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file" / "out", tmp_path / ("long" * 100)):
        with pytest.raises(DataError, match="cannot be written"), claimed(target, kind, replaces=False):  # type: ignore[arg-type]
            pytest.fail("the work began")
    assert names(tmp_path) == ["file"]


def test_folders_made_for_an_output_go_with_it(tmp_path: Path) -> None:
    with claimed(tmp_path / "a" / "b" / "out", "file", replaces=False):
        assert (tmp_path / "a" / "b").is_dir()
    assert names(tmp_path) == []
    write(tmp_path / "a" / "b" / "out")
    assert names(tmp_path / "a" / "b") == ["out"]


HOLD = """
import sys
from pathlib import Path
from demeanor.io.atomic import new_folder
with new_folder(Path(sys.argv[1])) as work:
    (work / "half").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def hold(target: Path) -> subprocess.Popen[str]:
    """A process that is writing to a target, and goes on for as long as its input is open."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.mark.slow
def test_the_second_of_two_processes_is_told_at_the_start_and_what_a_kill_leaves_is_taken_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "out"
    process = hold(target)
    with pytest.raises(DataError, match=f"is being written by process {process.pid}"), claimed(target, "folder", replaces=False):
        pass
    process.kill()
    process.communicate()
    left = [name for name in names(tmp_path) if name.endswith(UNFINISHED)]
    assert len(left) == 1
    assert f".out{LOCK}" in names(tmp_path)
    with caplog.at_level("INFO", "demeanor"), new_folder(target) as work:
        (work / "plan.yaml").write_text("whole")
    assert left[0] in caplog.text
    assert names(tmp_path) == ["out"]


def test_a_result_that_was_being_replaced_is_put_back(tmp_path: Path) -> None:
    """As a kill between the two renames leaves it."""
    old = tmp_path / f".out.12345678{REPLACED}"
    old.mkdir()
    (old / "plan.yaml").write_text("old")
    with pytest.raises(DataError, match="exists already"), new_folder(tmp_path / "out"):
        pass
    assert (names(tmp_path), (tmp_path / "out" / "plan.yaml").read_text()) == (["out"], "old")
    (tmp_path / "out").rename(old)
    with claimed(tmp_path / "out", "folder", replaces=True), new_folder(tmp_path / "out") as work:
        (work / "plan.yaml").write_text("new")
    assert (names(tmp_path), (tmp_path / "out" / "plan.yaml").read_text()) == (["out"], "new")


@pytest.mark.parametrize("lock", ["", "{", "[]", "null", '{"pid": "x"}', '{"pid": 1e99, "host": ""}', "[" * 100_000])
def test_a_damaged_lock_stops_nobody_for_long(tmp_path: Path, lock: str) -> None:
    path = tmp_path / f".out{LOCK}"
    path.write_text(lock)
    with pytest.raises(DataError, match="another process"), claimed(tmp_path / "out", "file", replaces=False):
        pass
    os.utime(path, (0, 0))  # of long ago
    write(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_a_number_of_a_process_that_is_used_again_is_not_that_process(tmp_path: Path) -> None:
    import platform

    path = tmp_path / f".out{LOCK}"
    path.write_text(json.dumps({"pid": os.getppid(), "started": "1", "host": platform.node()}))
    write(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_hidden_files_of_others_stay(tmp_path: Path) -> None:
    for name in (".out.gitignore", ".out.12345678", ".outer.12345678.unfinished", ".o[u]t.12345678.unfinished"):
        (tmp_path / name).write_text("mine")
    write(tmp_path / "out")
    assert len(names(tmp_path)) == 5


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_is_kept_to(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "file")
        write_tensors(tmp_path / "tensors", {"x": torch.ones(1)}, {})
        with new_folder(tmp_path / "folder") as work:
            save_file({"x": torch.ones(1)}, work / "tensors")
    finally:
        os.umask(before)
    for name in ("file", "tensors", "folder/tensors"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0")],
)
def test_a_full_disk_is_one_sentence_that_names_the_output(tmp_path: Path, error: Exception) -> None:
    for writing in (new_file, new_folder):
        with pytest.raises(DataError, match=r"out could not be written: .*nothing was left behind"), writing(tmp_path / "out"):  # type: ignore[operator]
            raise error
    assert names(tmp_path) == []
