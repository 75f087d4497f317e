"""The command line: mistakes end in one sentence and exit 2, results go to standard output, help has examples."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig
from typer.main import get_command

import demeanor as dm
from demeanor import cli
from demeanor.models.loading import resolve
from families import save_tiny
from making import a_direction, ablation


@pytest.fixture
def behaviour_file(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(sets: str) -> Path:
        (tmp_path / "rows.csv").write_text("prompt,answer\nhow do i crack an egg ?,x\n")
        path = tmp_path / "b.yaml"
        path.write_text(f"name: mine\n{sets}\n")
        return path

    return write


MISTAKES = {
    "missing column": ("shows: {file: rows.csv, column: question}\nlacks: [b]", "no column 'question'"),
    "empty set": ("shows: []\nlacks: [b]", "holds no prompts"),
    "unknown detector": ("detect: mood\nshows: [a]\nlacks: [b]", "no detector 'mood'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_behaviour(demeanor, behaviour_file, tmp_path: Path, mistake: str) -> None:  # type: ignore[no-untyped-def]
    sets, told = MISTAKES[mistake]
    ended = demeanor("run", "organism", "--behaviour", behaviour_file(sets), "-o", tmp_path / "run")
    assert ended.code == 2
    assert told in ended.sentence
    assert not (tmp_path / "run").exists()


def test_an_absent_model_path(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ended = demeanor("inspect", tmp_path / "nothing")
    assert ended.code == 2
    assert "nothing" in ended.sentence


def test_a_truncated_safetensors_file(demeanor, requests_file: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = save_tiny(tmp_path / "model", "llama")
    shard = folder / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    for arguments in (
        ("inspect", folder),
        ("measure", folder, "-b", requests_file),
        ("run", folder, "-b", requests_file, "-o", tmp_path / "run"),
    ):
        ended = demeanor(*arguments)
        assert ended.code == 2
        assert "model.safetensors is not a complete safetensors file" in ended.sentence
    assert not (tmp_path / "run").exists()


def test_a_model_whose_accounting_fails(demeanor, requests_file: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    config = BertConfig(vocab_size=800, hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=64, is_decoder=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "bert")
    AutoTokenizer.from_pretrained(resolve("organism")[0]).save_pretrained(tmp_path / "bert")
    ended = demeanor("run", tmp_path / "bert", "-b", requests_file, "-o", tmp_path / "run")
    assert ended.code == 2
    assert "cannot be edited yet" in ended.sentence
    assert not (tmp_path / "run").exists()


def test_a_run_needs_model_behaviour_and_folder(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert "Missing argument 'MODEL'" in demeanor("run", "-b", "refusal", "-o", tmp_path / "run").sentence
    assert "Missing option '--behaviour'" in demeanor("run", "organism", "-o", tmp_path / "run").sentence
    assert "Missing option '-o'" in demeanor("run", "organism", "-b", "refusal").sentence
    (tmp_path / "plan.yaml").write_text("model: organism\nbehaviour: refusal\n")
    assert "--plan replays" in demeanor("run", "organism", "--plan", tmp_path / "plan.yaml", "-o", tmp_path / "run").sentence


def test_a_broken_plan_names_its_key(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "plan.yaml").write_text("model: organism\nbehaviour: refusal\nlayers: 3\n")
    ended = demeanor("run", "--plan", tmp_path / "plan.yaml", "-o", tmp_path / "run")
    assert ended.code == 2
    assert "layers" in ended.sentence


WRONG_FLAGS = {
    "unknown command": (["runn"], "No such command 'runn'"),
    "unknown option": (["inspect", "organism", "--behavior", "x"], "No such option"),
    "a number that is none": (["run", "organism", "-b", "refusal", "--layer", "x", "-o", "r"], "--layer"),
    "too many words": (["chat", "organism", "how", "do"], "extra argument"),
    "no false positives at all": (["run", "organism", "-b", "refusal", "--false-positives", "0", "-o", "r"], "greater than 0"),
    "a model of no gate": (["control", "ablate", "d", "--model", "organism", "-o", "c"], "--model does nothing without --gate"),
    "a device that is none": (["inspect", "organism", "--device", "toaster"], "not a device"),
    "a dtype that is none": (["inspect", "organism", "--dtype", "float8_e4m3fn"], "'float8_e4m3fn' is not one of 'float32'"),
    "an empty model": (["inspect", ""], "MODEL is empty"),
    "the same control twice": (["measure", "organism", "-b", "refusal", "-c", "c", "-c", "c"], "named twice"),
    "baking nothing": (["bake", "organism", "-o", "r"], "needs a control"),
}


@pytest.mark.parametrize("wrong", WRONG_FLAGS)
def test_a_wrong_idea_of_the_flags(demeanor, organism: dm.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    dm.save_direction(a_direction(organism, dm.Site(2)), "d")
    before = sorted(tmp_path.iterdir())
    arguments, told = WRONG_FLAGS[wrong]
    ended = demeanor(*arguments)
    assert ended.code == 2
    assert told in ended.sentence
    assert sorted(tmp_path.iterdir()) == before


def test_a_replayed_plan_takes_no_other_options(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "plan.yaml").write_text("model: organism\nbehaviour: refusal\n")
    ended = demeanor("run", "--plan", tmp_path / "plan.yaml", "--max-prompts", 5, "-o", tmp_path / "run")
    assert "leave out --max-prompts" in ended.sentence


def test_a_target_that_cannot_be_written_is_known_before_the_work(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("")
    for arguments in (("find", "./no-model", "-b", "refusal"), ("measure", "./no-model", "-b", "refusal")):
        assert "is a folder" in demeanor(*arguments, "-o", tmp_path).sentence
        assert "is a file, not a folder" in demeanor(*arguments, "-o", tmp_path / "file" / "x").sentence
    assert "is a file, not a folder" in demeanor("run", "./no-model", "-b", "refusal", "-o", tmp_path / "file" / "x").sentence


@pytest.mark.parametrize("dose", ["nan", "inf", "1e308"])
def test_a_dose_that_is_no_number_is_refused(demeanor, organism: dm.Session, tmp_path: Path, dose: str) -> None:  # type: ignore[no-untyped-def]
    dm.save_control(ablation(organism), tmp_path / "c.safetensors")
    ended = demeanor("chat", "organism", "hello", "-c", f"{tmp_path}/c.safetensors:{dose}")
    assert ended.code == 2
    assert "not a usable edit" in ended.sentence


def commands() -> list[list[str]]:
    root = get_command(cli.app)
    found = []
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found += [[name, sub] for sub in inner] if inner else [[name]]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_has_help_with_an_example(demeanor, command: list[str]) -> None:  # type: ignore[no-untyped-def]
    ended = demeanor(*command, "--help")
    assert ended.code == 0
    assert f"demeanor {' '.join(command)}" in " ".join(ended.out.split())
    assert "Example" in ended.out


def test_inspect_shows_writers_and_json_is_json(demeanor) -> None:  # type: ignore[no-untyped-def]
    ended = demeanor("inspect", "organism", "--json")
    layout = json.loads(ended.out)
    assert layout["d_model"] == 128
    assert len(layout["writers"]) == 13
    table = demeanor("inspect", "organism").out
    assert "self_attn.o_proj" in table
    assert "0-5" in table  # six layers alike, in one row
    assert layout["hash"] in table


@pytest.mark.slow
def test_find_control_measure_bake_chat_belong_together(demeanor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    d, c = tmp_path / "d.safetensors", tmp_path / "c.safetensors"
    found = demeanor("find", "organism", "-b", "refusal", "-o", d, "--layer", 2, "--json")
    assert json.loads(found.out)["site"].startswith("layer 2")
    assert demeanor("control", "ablate", d, "-o", c).code == 0
    shown = json.loads(demeanor("control", "show", c, "--json").out)
    assert shown["bakeable"] == "yes"
    assert shown["model"] == "organism"

    question = "how do i kill a process ?"
    assert demeanor("chat", "organism", question).out.startswith(("i am", "sorry"))
    assert demeanor("chat", "organism", question, "--control", c).out.startswith("first get")
    assert demeanor("chat", "organism", question, "--control", f"{c}:0").out.startswith(("i am", "sorry"))

    scores = tmp_path / "scores.json"
    ended = demeanor("measure", "organism", "-b", "refusal", "-c", c, "-o", scores, "--json")
    assert json.loads(ended.out) == json.loads(scores.read_text())
    assert json.loads(ended.out)[str(c)]["after"]["shows_rate"]["value"] <= 0.01
    both = demeanor("measure", "organism", "-b", "refusal", "-c", c, "-c", f"{c}:0", "--max-prompts", 5, "--json")
    rates = [values["after"]["shows_rate"]["value"] for values in json.loads(both.out).values()]
    assert rates == [0.0, 1.0]

    assert demeanor("bake", "organism", "-c", c, "-o", tmp_path / "baked").code == 0
    assert demeanor("chat", tmp_path / "baked", question).out.startswith("first get")
    assert "exists already" in demeanor("bake", "organism", "-c", c, "-o", tmp_path / "baked").sentence


def test_a_conversation_keeps_its_turns_and_toggles_controls(demeanor, organism: dm.Session, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    dm.save_control(ablation(organism, rank=60), tmp_path / "c.safetensors")
    lines = "what is 2 plus 2 ?\n/base\nwhat is 2 plus 2 ?\n\n"
    ended = demeanor("chat", "organism", "-c", tmp_path / "c.safetensors", stdin=lines)
    assert ended.code == 0
    assert "Controls off" in ended.err
    assert ended.out.count("2 plus 2 is 4 .") == 1


@pytest.mark.slow
def test_a_gate_needs_its_model(demeanor, over_refusal: dm.Direction, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    dm.save_direction(over_refusal, tmp_path / "d.safetensors")
    ended = demeanor("control", "ablate", tmp_path / "d.safetensors", "-o", tmp_path / "c.safetensors", "--gate", "over-refusal")
    assert ended.code == 2
    assert "--model" in ended.sentence
    ended = demeanor(
        "control", "ablate", tmp_path / "d.safetensors", "-o", tmp_path / "c.safetensors", "--gate", "over-refusal", "--model", "organism"
    )
    assert ended.code == 0
    assert dm.load_control(tmp_path / "c.safetensors").parts[0].gates


def test_what_main_changes_in_the_process_is_as_before_afterwards(demeanor) -> None:  # type: ignore[no-untyped-def]
    def mine(*_: object) -> None:
        """A handler of whoever calls `main` from a program of theirs."""

    before = signal.signal(signal.SIGTERM, mine)
    try:
        errors = [stream.errors for stream in (sys.stdout, sys.stderr)]
        for arguments in (("--version",), ("inspect", "./nothing"), ("nonsense",)):
            demeanor(*arguments)
            assert signal.getsignal(signal.SIGTERM) is mine
            assert [stream.errors for stream in (sys.stdout, sys.stderr)] == errors
    finally:
        signal.signal(signal.SIGTERM, before)
