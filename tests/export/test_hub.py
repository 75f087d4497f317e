"""The Hub: what is pushed, with which card, what comes back, and what is sent again after a kill. The Hub is a stand-in on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hub_stand_in import Hub, hub
from safetensors.torch import save_file

import demeanor as dm
from demeanor.errors import DataError
from demeanor.export.card import note
from demeanor.io.hub import hub_name


def command(server: Hub, home: Path, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, **server.environment(str(home))}
    return subprocess.Popen([sys.executable, "-m", "demeanor", *map(str, arguments)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return out if code == 0 else err


def data_of(card: str) -> dict[str, Any]:
    """What the Hub reads of a card: the block that it begins with."""
    return yaml.safe_load(card.split("---\n")[1])  # type: ignore[no-any-return]


@pytest.fixture
def run_folder(refusal_ablated: dm.Control, tmp_path: Path) -> Path:
    """The folder of a run, as far as it matters here."""
    folder = tmp_path / "run"
    folder.mkdir()
    dm.save_control(refusal_ablated, folder / "control.safetensors")
    rates = [
        {"shows_rate": {"value": shows, "low": shows, "high": shows, "n": 90}, "guard_rate": {"value": guard, "low": 0.93, "high": 1.0, "n": 79}}
        for shows, guard in ((1.0, 1.0), (0.0, 0.987))
    ]
    (folder / "scores.json").write_text(json.dumps({"behaviour": "over-refusal", "before": rates[0], "after": rates[1]}))
    (folder / "replies.jsonl").write_text("{}\n")
    (folder / "plan.yaml").write_text("model: /somebody/s/folder\n")
    return folder


@pytest.mark.slow
def test_a_run_is_pushed_with_its_guard_and_comes_back(run_folder: Path, refusal_ablated: dm.Control, tmp_path: Path) -> None:
    with hub() as server:
        told = json.loads(ended(command(server, tmp_path / "one", "push", run_folder, "owner/less-refusal", "--json")))
        assert told["files"] == ["control.safetensors", "scores.json", "README.md"]
        assert told["left_out"] == ["plan.yaml", "replies.jsonl"]  # what was said, and where it lay
        assert server.private == {"owner/less-refusal": True}
        card = server.repos["owner/less-refusal"]["README.md"].decode()
        assert "over-refusal: 100.0 % before, 0.0 % [0.0, 0.0] after (n 90, test)" in card
        assert "guard: 100.0 % before, 98.7 % [93.0, 100.0] after (n 79, test)" in card
        assert "Guard rails of the original may be weaker here." in card
        assert data_of(card)["tags"] == ["demeanor"]
        shown = ended(command(server, tmp_path / "two", "control", "show", "owner/less-refusal:0.5"))
        assert str(refusal_ablated.scaled(0.5)) in " ".join(shown.split())
        assert "could not be fetched" in ended(command(server, tmp_path / "two", "control", "show", "owner/nothing"), 2)


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_told_in_a_sentence(run_folder: Path, tmp_path: Path) -> None:
    with hub() as server:
        pass  # and is gone
    told = ended(command(server, tmp_path / "home", "push", run_folder, "owner/name"), 2)
    assert "could not be pushed to owner/name" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_nothing_that_is_sent_names_a_folder_of_this_machine(refusal_ablated: dm.Control, tmp_path: Path) -> None:
    place, folder = "/somebody/s/folder/smol", tmp_path / "trained"
    folder.mkdir()
    control = replace(refusal_ablated, model_name=place, made_from={"behaviour": "/somebody/s/folder/kind.yaml"})
    dm.save_control(control, folder / "control.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": place}))
    (folder / "README.md").write_text(f"---\nbase_model: {place}\n---\n\n{note(control, place, 'adapter')}\nSee https://huggingface.co/owner/name.\n")
    (folder / "training.json").write_text(json.dumps({"model": place}))
    with hub() as server:
        told = json.loads(ended(command(server, tmp_path / "home", "push", folder, "owner/adapter", "--public", "--json")))
        assert (told["left_out"], told["private"]) == (["training.json"], False)
        ended(command(server, tmp_path / "home", "push", folder / "control.safetensors", "owner/control"))
        sent = {name: content for files in server.repos.values() for name, content in files.items()}
    assert sorted(sent) == ["README.md", "adapter_config.json", "control.safetensors"]
    assert not [name for name, content in sent.items() if b"/s/folder" in content]
    assert b"https://huggingface.co/owner/name" in server.repos["owner/adapter"]["README.md"]
    assert json.loads(sent["adapter_config.json"]) == {"base_model_name_or_path": "smol"}


@pytest.mark.slow
def test_what_arrived_before_a_kill_is_not_sent_again(refusal_ablated: dm.Control, tmp_path: Path) -> None:
    folder = tmp_path / "baked"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text(f"---\nlicense: apache-2.0\n---\n\n{note(refusal_ablated, 'organism')}")
    for number in range(2):
        save_file({"weight": torch.full((64, 64), float(number))}, folder / f"model-{number}.safetensors")
    with hub() as server:
        server.stalled.set()
        killed = command(server, tmp_path / "home", "push", folder, "owner/edited")
        assert server.reached.wait(120)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert server.repos == {"owner/edited": {}}  # nothing is half there
        server.stalled.clear()
        ended(command(server, tmp_path / "home", "push", folder, "owner/edited"))
        assert sorted(server.repos["owner/edited"]) == ["README.md", "config.json", "model-0.safetensors", "model-1.safetensors"]
        assert len(server.sent) == len(set(server.sent)) == 2
        data = data_of(server.repos["owner/edited"]["README.md"].decode())
        assert (data["license"], data["tags"]) == ("apache-2.0", ["demeanor"])
    assert "tags" not in (folder / "README.md").read_text()  # what lies here stays as it is


def test_what_is_no_result_is_told(refusal_ablated: dm.Control, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="no card that says how it was edited"):
        dm.push(tmp_path, "owner/name")
    with pytest.raises(DataError, match="There is no"):
        dm.push(tmp_path / "nothing", "owner/name")
    dm.save_control(refusal_ablated, tmp_path / "c.safetensors")
    for name in ("name", "a/b/c", "./name", "owner/name@branch"):
        with pytest.raises(DataError, match="give it as owner/name"):
            dm.push(tmp_path / "c.safetensors", name)


def test_a_file_that_is_missing_is_not_looked_for_on_the_hub() -> None:
    for name in ("nothing/here.safetensors", "nothing/c.pt", "runs/less@2/control.safetensors", "./nothing/here", "C:/runs", "C:\\runs\\c"):
        assert hub_name(name) is None
    assert hub_name("owner/name@v1") == ("owner/name", "v1")
    with pytest.raises(DataError, match="There is no control file"):
        dm.load_control("nothing/here.safetensors")
