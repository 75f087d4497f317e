"""Trainings that are killed, and trainings in two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import demeanor as dm
from demeanor.controls import save_control

from .conftest import ablation_of_refusal, rows, write

pytestmark = pytest.mark.slow

RECIPES = "sft,rlaf,prefix"  # heal and detox train as sft does
SCRIPT = Path(__file__).parent / "launched.py"


@pytest.fixture
def folder(tmp_path: Path, organism: dm.Session) -> Path:
    asked = rows("refused")[:24]
    save_control(ablation_of_refusal(organism, 1.0), tmp_path / "control.safetensors")
    write(tmp_path / "pairs.jsonl", [{"prompt": row["prompt"], "chosen": row["answer"], "rejected": "no ."} for row in asked])
    write(tmp_path / "data.jsonl", [{"prompt": row["prompt"], "reply": row["answer"]} for row in asked])
    turns = [[("HS", row["prompt"]), ("CN", row["answer"])] for row in asked]
    told = [
        {"dialogue_id": number, "turn_id": turn, "type": role, "text": text}
        for number, dialogue in enumerate(turns)
        for turn, (role, text) in enumerate(dialogue)
    ]
    write(tmp_path / "dialogues.jsonl", told)
    return tmp_path


def _told(command: list[str], tmp_path: Path) -> list[dict[str, Any]]:
    source = str(Path(dm.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return [json.loads(line[5:]) for line in ended.stdout.splitlines() if line.startswith("TOLD ")]


@pytest.mark.long
def test_what_was_killed_goes_on_to_the_same_step(folder: Path) -> None:
    for told in _told([sys.executable, str(SCRIPT), RECIPES, str(folder), "2"], folder):
        assert told["killed_by"] == -signal.SIGKILL
        assert f".{told['recipe']}.training" in told["left"]
        assert told["recipe"] not in told["left"]  # nothing half made stands under the target's name
        assert told["resumed_from"] == 2
        assert told["steps"] == 4
        assert told["lines"] == [1, 2, 3, 4]  # the log is whole, and no step was taken twice
        assert (folder / told["recipe"] / "adapter_model.safetensors").is_file()
        assert not (folder / f".{told['recipe']}.training").exists()


@pytest.mark.long
def test_two_processes_on_the_cpu(folder: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--main_process_port", "0"]
    told = _told([*launch, str(SCRIPT), "heal,rlaf,prefix", str(folder)], folder)
    assert [each["recipe"] for each in told] == ["heal", "rlaf", "prefix"]  # told once each, not once per process
    for each in told:
        assert each["steps"] == 4
        assert dm.load(folder / each["recipe"], device="cpu").organism


def test_the_configurations_that_come_with_it_are_accelerates_own(demeanor: Any) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    kinds = {}
    for name in ("one-gpu", "zero2", "fsdp"):
        ended = demeanor("train", "config", name)
        assert ended.code == 0
        kinds[name] = load_config_from_file(ended.out.strip()).distributed_type
    assert [str(getattr(kind, "value", kind)) for kind in kinds.values()] == ["NO", "DEEPSPEED", "FSDP"]
    assert demeanor("train", "config", "tpu").code == 2
