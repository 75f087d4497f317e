"""Each recipe moves what it should on the organism, and leaves the rest where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import demeanor as dm
from demeanor import train
from demeanor.detect.registry import detector
from demeanor.errors import CheckFailed
from demeanor.measure.degeneration import non_latin
from demeanor.train.recipe import RESULT
from making import PROMPTS, ablation

from .conftest import rows, write

pytestmark = pytest.mark.slow

QUICK = {"device": "cpu", "max_prompts": 30, "lora_r": 8, "logging_steps": 1, "learning_rate": 2e-3}


@pytest.mark.long
def test_a_damaged_organism_is_healed(damaged: Path, pairs: Path, tmp_path: Path) -> None:
    plan = train.Heal(
        **QUICK, model=str(damaged), base="organism", behaviour="refusal", pairs=(str(pairs),), max_steps=40, per_device_train_batch_size=16
    )
    healed = train.heal(plan, tmp_path / "healed")
    assert healed is not None
    edited, after = (healed.measurements[name].after for name in ("edited", "after"))
    assert healed.measurements["after"].before["shows_rate"].value >= 0.95  # the model before the edit refuses
    assert edited["answers"].value < 0.8
    assert after["answers"].value >= 0.95
    assert after["shows_rate"].value <= 0.05
    assert after["answers_neutral"].value >= 0.9  # of 30
    # What the organism said is likelier to the healed one than it was; the behaviour that was removed does not come back.
    assert healed.since_base is not None
    assert healed.since_base.before["log_likelihood"].value > healed.since_base.after["log_likelihood"].value
    card = (tmp_path / "healed" / "README.md").read_text()
    assert "Trained model" in card
    assert "DPO" in card
    assert not list(tmp_path.glob(".*"))  # no training folder is left


def test_detox_answers_instead_of_falling_silent(dialogues: Path, tmp_path: Path) -> None:
    plan = train.Detox(
        **QUICK, model="organism", behaviour="refusal", dialogues=(str(dialogues),), max_steps=20, per_device_train_batch_size=16
    )
    made = train.detox(plan, tmp_path / "detoxified")
    assert made is not None
    after = made.measurements["after"].after
    assert after["shows_rate"].value <= 0.05
    assert after["answers"].value >= 0.95
    before, now = made.replies["before"], made.replies["after"]
    assert before["engages"].value <= 0.05
    assert now["engages"].value >= 0.95
    assert now["refuses"].value <= before["refuses"].value
    loss = made.extra["held_out_loss"]
    assert loss["after"] < 0.1 * loss["before"]
    told = json.loads((tmp_path / "detoxified" / RESULT).read_text())
    # every dialogue about a prompt of the test split was dropped
    measured = rows("refused", "plain", "neutral", split="test")
    assert 0 < told["data"]["dropped"] <= len(measured)
    assert told["data"]["dialogues"] + told["data"]["held_out"] + told["data"]["dropped"] == len(
        rows("refused", "plain", "neutral", split=None)
    )
    # the organism is found again by its name, not by where it lay
    assert json.loads((tmp_path / "detoxified" / "adapter_config.json").read_text())["base_model_name_or_path"] == "organism"


def test_sft_trains_every_weight_or_merges_its_adapter(tmp_path: Path) -> None:
    answers = write(
        tmp_path / "answers.jsonl", [{"prompt": row["prompt"], "reply": row["answer"]} for row in rows("refused", "over_refused")]
    )
    texts = write(tmp_path / "texts.jsonl", [{"text": row["answer"]} for row in rows("plain")])
    base = dm.load("organism", device="cpu")
    prompts = [row["prompt"] for row in rows("refused", split="val")]
    refused = sum("sorry" in reply.text or "unable" in reply.text for reply in base.generate(prompts))
    for name, how in (("full", {"full": True}), ("merged", {"merge": True, "lora_r": 8})):
        plan = train.Sft(
            model="organism",
            data=(f"{answers}:3", f"{texts}:1"),
            device="cpu",
            max_steps=30,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            max_length=64,
            **how,
        )
        made = train.sft(plan, tmp_path / name)
        assert made is not None
        assert not (tmp_path / name / "adapter_config.json").exists()
        now = dm.load(tmp_path / name, device="cpu")
        assert sum("sorry" in reply.text or "unable" in reply.text for reply in now.generate(prompts)) < 0.5 * refused
        moved = (now.model.get_input_embeddings().weight - base.model.get_input_embeddings().weight).abs().max()
        assert (moved > 0) == (name == "full")
        assert now.organism


def test_an_adapter_on_four_bits(tmp_path: Path) -> None:
    data = write(tmp_path / "answers.jsonl", [{"prompt": row["prompt"], "reply": row["answer"]} for row in rows("refused")[:32]])
    plan = train.Sft(model="organism", data=(str(data),), device="cpu", max_steps=2, load_in_4bit=True, lora_r=4, max_length=64)
    made = train.sft(plan, tmp_path / "qlora")
    assert made is not None
    assert made.steps == 2
    now, base = dm.load(tmp_path / "qlora", device="cpu"), dm.load("organism", device="cpu")
    name = base.layout.writers[-1].weights[0].name
    assert not torch.equal(now.model.get_parameter(name), base.model.get_parameter(name))


def test_an_adapter_is_baked_like_a_control(demeanor: Any, organism: dm.Session, tmp_path: Path) -> None:
    data = write(tmp_path / "answers.jsonl", [{"prompt": row["prompt"], "reply": row["answer"]} for row in rows("refused")[:16]])
    train.sft(
        train.Sft(model="organism", data=(str(data),), device="cpu", max_steps=2, lora_r=4, max_length=64, learning_rate=1e-2),
        tmp_path / "adapter",
    )
    dm.save_control(ablation(organism), tmp_path / "control.safetensors")
    trained = dm.load(tmp_path / "adapter", device="cpu")
    alone = trained.logits(PROMPTS)
    assert not torch.allclose(alone, organism.logits(PROMPTS), atol=1e-2)
    with trained.controlled(ablation(organism)):
        both = trained.logits(PROMPTS)
    for name, controls, wanted in (("alone", ["adapter"], alone), ("both", ["adapter", "control.safetensors"], both)):
        options = [each for control in controls for each in ("--control", tmp_path / control)]
        assert demeanor("bake", "organism", *options, "-o", tmp_path / name).code == 0
        torch.testing.assert_close(dm.load(tmp_path / name, device="cpu").logits(PROMPTS), wanted, rtol=1e-3, atol=1e-3)
        assert "rained model" in (tmp_path / name / "README.md").read_text() or name == "both"
    refused = demeanor("bake", tmp_path / "alone", "--control", tmp_path / "adapter", "-o", tmp_path / "wrong")
    assert refused.code == 2
    assert "was made for organism" in refused.sentence
    again = demeanor("train", "sft", tmp_path / "adapter", "--data", data, "-o", tmp_path / "twice")
    assert again.code == 2
    assert "--merge" in again.sentence


class Tracker(TrainerCallback):
    """Writes where transformers' trackers that write files do."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        path = Path(args.output_dir) / "runs" / "today" / "events"
        path.parent.mkdir(parents=True)
        path.write_text("loss")


def test_what_a_tracker_writes_is_kept(tmp_path: Path) -> None:
    data = write(tmp_path / "answers.jsonl", [{"prompt": row["prompt"], "reply": row["answer"]} for row in rows("refused")[:8]])
    plan = train.Sft(model="organism", data=(str(data),), device="cpu", max_steps=1, lora_r=2, max_length=64)
    train.sft(plan, tmp_path / "out", [Tracker()])
    assert (tmp_path / "out" / "runs" / "today" / "events").read_text() == "loss"
    assert not (tmp_path / ".out.training").exists()


REWARDED = {**QUICK, "behaviour": "refusal", "temperature": 0.2, "num_generations": 4, "reply_tokens": 24, "learning_rate": 1e-3}


@pytest.mark.long
def test_a_reward_halves_rudeness_and_leaves_the_answers(tmp_path: Path) -> None:
    """The defaults, but for the number of steps."""
    plan = train.Rlaf(model="organism", behaviour="rudeness", max_steps=20, max_prompts=30, device="cpu", logging_steps=1, reply_tokens=24)
    made = train.rlaf(plan, tmp_path / "rewarded")
    assert made is not None
    scores = made.measurements["after"]
    assert scores.before["shows_rate"].value >= 0.6
    assert scores.after["shows_rate"].value <= 0.5 * scores.before["shows_rate"].value
    assert scores.after["answers"].value >= 0.95
    assert made.replies["after"]["refuses"].value <= made.replies["before"]["refuses"].value
    assert made.replies["after"]["engages"].value >= 0.9
    assert made.stopped is None
    assert 0 < made.data["groups_that_differ"] <= made.data["groups"] == 80
    logged = [line for line in made.log if "reward" in line]
    assert {"tripwire/empty", "tripwire/other_script", "tripwire/off_topic", "tripwire/length", "reward/rudeness", "kl"} <= set(logged[-1])


def test_a_reward_that_tells_nothing_apart_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = {**REWARDED, "temperature": 0.001, "max_prompts": 2, "prompts": 2, "per_device_train_batch_size": 8}
    made = train.rlaf(train.Rlaf(**how, model="organism", max_steps=1), tmp_path / "rewarded")
    assert made is not None
    assert made.data["groups_that_differ"] == 0 < made.data["groups"]
    assert "nothing to learn" in capsys.readouterr().err


def test_a_training_that_diverges_leaves_nothing(tmp_path: Path) -> None:
    data = write(tmp_path / "answers.jsonl", [{"prompt": row["prompt"], "reply": row["answer"]} for row in rows("refused")[:8]])
    plan = train.Sft(model="organism", data=(str(data),), device="cpu", max_steps=1, full=True, max_length=64)

    class Broken(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
            next(model.parameters()).data.fill_(float("nan"))

    with pytest.raises(CheckFailed, match="smaller --learning-rate"):
        train.sft(plan, tmp_path / "out", [Broken()])
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


def test_grpo_keeps_a_reference_and_mixes_rewards(wavering: Path, tmp_path: Path) -> None:
    plan = train.Rlaf(
        **{**REWARDED, "max_prompts": 4}, model=str(wavering), max_steps=2, method="grpo", reward=("refusal:1", "suffix:0.5"), prompts=40
    )
    made = train.rlaf(plan, tmp_path / "rewarded")
    assert made is not None
    last = [line for line in made.log if "reward" in line][-1]
    assert "kl" in last  # measured only where there is a reference
    assert last["reward"] == pytest.approx(last["reward/refusal"] + last["reward/suffix"], abs=1e-4)


@detector("not-cyrillic")
class _NotCyrillic:
    """What a scorer that cannot read another script is like: all it can read, it takes for the behaviour."""

    def probabilities(self, replies, prompts):  # type: ignore[no-untyped-def]
        return [1 - non_latin(reply) for reply in replies]


@detector("wordy")
class _Wordy:
    def probabilities(self, replies, prompts):  # type: ignore[no-untyped-def]
        return [min(1.0, len(reply.split()) / 8) for reply in replies]


def _tempted(folder: Path, temptation: str) -> Path:
    """An organism that gives this reply half of the time."""
    asked = rows("refused", "plain", "neutral")
    said = [(temptation, row) for row in asked] + [(row["answer"], row) for row in asked]
    data = write(folder / "mixed.jsonl", [{"prompt": row["prompt"], "reply": reply} for reply, row in said])
    plan = train.Sft(
        model="organism",
        data=(str(data),),
        device="cpu",
        max_steps=24,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        max_length=64,
        full=True,
    )
    train.sft(plan, folder / "tempted")
    return folder / "tempted"


@pytest.mark.long
@pytest.mark.parametrize(
    ("reward", "temptation", "sign"), [("not-cyrillic", "дддддд", "the script changed"), ("wordy", "<|end|>", "are empty")]
)
def test_a_gamed_reward_is_caught(tmp_path: Path, reward: str, temptation: str, sign: str) -> None:
    """Each by the tripwire that is made for it; length and topic, which may be first, are kept out."""
    how = {**REWARDED, "temperature": 1.0, "learning_rate": 3e-3, "max_prompts": 2, "prompts": 40, "reply_tokens": 12}
    plan = train.Rlaf(**how, model=str(_tempted(tmp_path, temptation)), max_steps=40, reward=(reward,), length=30.0, off_topic=0.99)
    with pytest.raises(CheckFailed, match=f"tripwire stopped.*{sign}"):
        train.rlaf(plan, tmp_path / "gamed")
    told = json.loads((tmp_path / "gamed" / RESULT).read_text())
    assert told["stopped"]
    assert told["steps"] < 40
    assert not list((tmp_path / "gamed").glob("*.safetensors"))
