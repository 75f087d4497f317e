"""A run that was killed goes on where it was, and ends as if it had not been."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import demeanor as dm
from demeanor.errors import DataError, DemeanorError, WorkersLost
from demeanor.io.journal import Journal
from demeanor.job.resume import resumable, running_folder
from demeanor.job.run import scores

pytestmark = pytest.mark.slow
PLAN = dm.Plan(model="organism", behaviour="over-refusal", layer=3, max_prompts=20, doses=0, device="cpu", selective=False)
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
import demeanor as dm
from demeanor.io.journal import Journal
torch.set_num_threads(1)
recall, left = Journal.recall, int(sys.argv[2])
def dies(journal, depends_on, compute):
    global left
    value = recall(journal, depends_on, compute)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return value
Journal.recall = dies
dm.run(dm.Plan.from_file(Path(sys.argv[1])), sys.argv[3])
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dm.Run:
    return dm.run(PLAN, tmp_path_factory.mktemp("whole") / "run")


def killed(folder: Path, after: int) -> int:
    """A run that is killed, as kill -9 does, once so many results are in its journal; its exit code."""
    plan = folder / "plan.yaml"
    plan.write_text(PLAN.written())
    return subprocess.run([sys.executable, "-c", KILLED, plan, str(after), folder / "run"], check=False, capture_output=True).returncode


@pytest.mark.long
def test_a_killed_run_resumes_to_the_same_scores(
    tmp_path: Path, whole: dm.Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = 11  # results: the search is over, the trials are not
    assert killed(tmp_path, after) == -signal.SIGKILL
    assert not (tmp_path / "run").exists()
    kept = list(running_folder(tmp_path / "run").glob("*.jsonl"))
    assert len(Journal(kept[0])) == after
    monkeypatch.setattr(logging.getLogger("demeanor"), "propagate", True)
    with caplog.at_level("INFO", "demeanor"):
        again = dm.run(PLAN, tmp_path / "run")
    assert f"goes on from {after} results" in caplog.text
    assert scores(again) == scores(whole)
    assert again.measurement.replies() == whole.measurement.replies()
    assert not running_folder(tmp_path / "run").exists()


def test_other_options_towards_the_same_folder_are_refused(tmp_path: Path) -> None:
    folder = running_folder(tmp_path / "run")
    folder.mkdir()
    (folder / "plan.yaml").write_text(PLAN.written())
    with pytest.raises(DataError, match="begun and not finished"):
        dm.run(PLAN.model_copy(update={"max_prompts": 25}), tmp_path / "run")


def test_a_run_that_cannot_succeed_leaves_nothing(tmp_path: Path) -> None:
    words = ["one", "two", "three", "four", "five", "six"]
    behaviour = {"name": "none", "shows": [f"how do i wash a {word} ?" for word in words], "lacks": [f"how do i fold a {word} ?" for word in words]}
    (tmp_path / "b.yaml").write_text("\n".join(f"{key}: {value!r}" for key, value in behaviour.items()))
    with pytest.raises(DataError):
        dm.run(dm.Plan(model="organism", behaviour=str(tmp_path / "b.yaml"), device="cpu"), tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.yaml"]


@pytest.mark.parametrize(("error", "stays"), [(WorkersLost("The cluster answers no more."), True), (DataError("This is wrong."), False)])
def test_what_was_computed_stays_where_only_the_workers_are_gone(organism: dm.Session, tmp_path: Path, error: DemeanorError, stays: bool) -> None:
    def broken_off() -> None:
        with resumable(PLAN, organism, tmp_path / "run") as journal:
            journal.recall(["a", "result"], lambda: 7)
            raise error

    with pytest.raises(type(error)):
        broken_off()
    kept = list(running_folder(tmp_path / "run").glob("*.jsonl"))
    assert bool(kept) is stays
    if stays:
        with resumable(PLAN, organism, tmp_path / "run") as journal:
            assert len(journal) == 1
