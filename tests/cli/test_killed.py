"""Commands that are killed at any moment of their writing: nothing half-written stands there, and the next one leaves nothing beside its result.

A moment is a file operation in the output's folder. `make kills` tries several of them for each command, `make test` one of one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from families import save_tiny
from making import ablation

pytestmark = pytest.mark.slow
MANY = "DEMEANOR_KILLS" in os.environ
MOMENTS = int(os.environ.get("DEMEANOR_KILLS", "1"))
# Counts what is opened for writing, made, renamed and removed in a folder, and kills itself, as kill -9 does, before one of them.
KILLED = """
import os, signal, sys
folder, at, *command = sys.argv[1:]
moments = 0
def watch(event, arguments):
    global moments
    writes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link") or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
    if writes and isinstance(arguments[0], str) and os.path.abspath(arguments[0]).startswith(folder):
        moments += 1
        if moments == int(at):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
from demeanor import cli
sys.argv = ["demeanor", *command]
try:
    cli.main()
except SystemExit as end:
    print("moments", moments)
    sys.exit(end.code)
"""
OPTIONS = {
    "find": ["find", "organism", "-b", "refusal", "--layer", "2", "--max-prompts", "24", "--device", "cpu"],
    "find --stream": ["find", "organism", "-b", "refusal", "--stream", "--tried", "3", "--max-prompts", "24", "--device", "cpu"],
    "bake": ["bake", "organism", "-c", "CONTROL"],
    "run": ["run", "organism", "-b", "refusal", "--layer", "2", "--max-prompts", "20", "--doses", "0", "--device", "cpu"],
    "search": ["search", "organism", "-b", "refusal", "--max-prompts", "20", "--trials", "20", "--confirmed", "2", "--checked", "0", "--device", "cpu"],
    "train": [
        "train", "sft", "organism", "--data", "TEXTS", "--max-steps", "2", "--save-steps", "1", "--per-device-train-batch-size", "2", "--device", "cpu",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory, organism, over_refusal) -> Path:  # type: ignore[no-untyped-def]
    import demeanor as dm

    path = tmp_path_factory.mktemp("control") / "c.safetensors"
    dm.save_control(dm.ablate(over_refusal), path)
    (path.parent / "texts.jsonl").write_text("\n".join(json.dumps({"text": f"you wash a map {n} times ."}) for n in range(8)))
    return path


def command(name: str, control: Path, out: Path) -> list[str]:
    files = {"CONTROL": str(control), "TEXTS": str(control.parent / "texts.jsonl")}
    return [*(files.get(word, word) for word in OPTIONS[name]), "-o", str(out)]


def started(folder: Path, at: int, words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(at), *words], capture_output=True, text=True, env=environment, check=False
    )


def entries(out: Path) -> set[str]:
    """What an output holds, by name; the output itself where it is a file."""
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} if out.is_dir() else {out.name}


@pytest.mark.long
@pytest.mark.parametrize("name", OPTIONS if MANY else ["bake"])
def test_a_kill_at_any_moment_costs_nothing_but_the_work(tmp_path: Path, control: Path, name: str) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    ended = started(whole, 0, command(name, control, whole / "out"))
    assert ended.returncode == 0, ended.stderr
    moments = int(ended.stdout.splitlines()[-1].split()[1])
    for at in random.Random(name).sample(range(1, moments + 1), min(MOMENTS, moments)):
        folder = tmp_path / f"at {at}"
        folder.mkdir()
        out = folder / "out"
        assert started(folder, at, command(name, control, out)).returncode == -signal.SIGKILL
        if out.exists():  # the last moments come after the result has its name
            assert entries(out) == entries(whole / "out")
            continue
        again = started(folder, 0, command(name, control, out))
        assert again.returncode == 0, again.stderr
        assert entries(out) == entries(whole / "out")
        assert [path.name for path in folder.iterdir()] == ["out"]
        if name in ("run", "search"):
            assert json.loads((out / "scores.json").read_text()) == json.loads((whole / "out" / "scores.json").read_text())


@pytest.mark.long
def test_a_stream_that_was_killed_goes_on_after_its_last_whole_block(tmp_path: Path, control: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    folder.mkdir()
    moments = int(started(whole, 0, command("find --stream", control, whole / "out")).stdout.splitlines()[-1].split()[1])
    assert started(folder, 2 * moments // 3, command("find --stream", control, folder / "out")).returncode == -signal.SIGKILL
    assert len(list((folder / ".out.resumed" / "found").glob("stream.*"))) in (1, 2)  # whole, and the one that is being written
    again = started(folder, 0, command("find --stream", control, folder / "out"))
    assert again.returncode == 0, again.stderr
    assert "blocks were passed before" in again.stderr
    assert [path.name for path in folder.iterdir()] == ["out"]
    assert (folder / "out").read_bytes() == (whole / "out").read_bytes()


@pytest.mark.long
def test_a_bake_that_was_killed_goes_on_after_its_last_whole_shard(tmp_path: Path) -> None:
    import demeanor as dm

    source, control = save_tiny(tmp_path / "source", "llama", shard="60KB"), tmp_path / "c.safetensors"
    dm.save_control(ablation(dm.load(source, device="cpu")), control)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    folder.mkdir()
    words = ["bake", str(source), "-c", str(control), "--copy", "-o"]
    moments = int(started(whole, 0, [*words, str(whole / "out")]).stdout.splitlines()[-1].split()[1])
    assert started(folder, 2 * moments // 3, [*words, str(folder / "out")]).returncode == -signal.SIGKILL
    shards = {path.name: path.stat().st_ino for path in (folder / ".out.resumed").glob("*.safetensors")}
    assert 0 < len(shards) < len(list(source.glob("*.safetensors")))
    again = started(folder, 0, [*words, str(folder / "out")])
    assert again.returncode == 0, again.stderr
    assert {name: (folder / "out" / name).stat().st_ino for name in shards} == shards
    assert [path.name for path in folder.iterdir()] == ["out"]
    same = [path.name for path in (whole / "out").iterdir()]
    assert all((whole / "out" / name).read_bytes() == (folder / "out" / name).read_bytes() for name in same)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


@pytest.mark.long
def test_an_export_that_changes_a_copy_in_place_is_whole_or_not_there(tmp_path: Path) -> None:
    """At every moment: the copy has its name only when all of it is changed."""
    pytest.importorskip("gguf", reason="GGUF files take the package gguf: pip install 'demeanor[gguf]'")
    import demeanor as dm
    from tiny_gguf import tiny_llama, write_gguf

    source, control = write_gguf(tmp_path / "source.gguf", tiny_llama()), tmp_path / "c.safetensors"
    dm.save_control(ablation(dm.load(source, device="cpu")), control)
    before = source.read_bytes()
    words = ["export", str(source), "-c", str(control), "--as", "gguf", "--edited-as", "stored", "--device", "cpu", "-o"]
    whole = tmp_path / "whole"
    whole.mkdir()
    moments = int(started(whole, 0, [*words, str(whole / "out")]).stdout.splitlines()[-1].split()[1])
    wanted, absent = (whole / "out").read_bytes(), []
    for at in range(1, moments + 1):
        out = tmp_path / f"at {at}" / "out"
        out.parent.mkdir()
        assert started(out.parent, at, [*words, str(out)]).returncode == -signal.SIGKILL
        absent += [] if out.exists() else [out]
        assert not out.exists() or out.read_bytes() == wanted
    again = started(absent[-1].parent, 0, [*words, str(absent[-1])])  # it was all but whole
    assert again.returncode == 0, again.stderr
    assert [path.name for path in absent[-1].parent.iterdir()] == ["out"]
    assert absent[-1].read_bytes() == wanted
    assert source.read_bytes() == before
