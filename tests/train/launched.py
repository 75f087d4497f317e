"""Run by the tests in processes of their own: `python launched.py RECIPE FOLDER [KILL_AT]`, alone or under accelerate launch.

RECIPE may name several, with commas. With KILL_AT each recipe runs in a child that kills itself there, as kill -9 would; then it is
begun again here.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
import trl
from transformers import TrainerCallback

from demeanor import train

ALIKE = {
    "model": "organism",
    "device": "cpu",
    "lora_r": 4,
    "per_device_train_batch_size": 4,
    "max_steps": 4,
    "save_steps": 1,
    "logging_steps": 1,
    "max_prompts": 2,
}
_ = trl.DPOTrainer, trl.SFTTrainer, trl.RLOOTrainer  # imported once, before there are children


class Killed(TrainerCallback):
    """kill -9 at the beginning of a step: the checkpoint of the one before is there."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if state.global_step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def made(recipe: str, folder: Path, callbacks: list[TrainerCallback]) -> train.Trained | None:
    out = folder / recipe
    if recipe == "heal":
        return train.heal(train.Heal(**ALIKE, pairs=(str(folder / "pairs.jsonl"),), max_length=64), out, callbacks)
    if recipe == "sft":
        return train.sft(train.Sft(**ALIKE, data=(str(folder / "data.jsonl"),), max_length=64), out, callbacks)
    if recipe == "detox":
        plan = train.Detox(**ALIKE, behaviour="refusal", dialogues=(str(folder / "dialogues.jsonl"),), held_out=0.3, max_length=64)
        return train.detox(plan, out, callbacks)
    if recipe == "prefix":
        plan = train.Prefix(**ALIKE, behaviour="over-refusal", control=str(folder / "control.safetensors"), prompts=16, reply_tokens=8)
        return train.prefix(plan, out, callbacks)
    return train.rlaf(train.Rlaf(**ALIKE, behaviour="refusal", num_generations=2, prompts=8, reply_tokens=8), out, callbacks)


def main(recipes: str, folder: Path, kill_at: int | None) -> None:
    torch.set_num_threads(1)
    for recipe in recipes.split(","):
        told: dict[str, object] = {"recipe": recipe}
        if kill_at is not None:
            child = os.fork()
            if child == 0:
                made(recipe, folder, [Killed(kill_at)])
                os._exit(0)
            told["killed_by"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            told["left"] = sorted(path.name for path in folder.glob(f"*{recipe}*"))
        result = made(recipe, folder, [])
        if result is not None:
            told |= {
                "steps": result.steps,
                "resumed_from": result.resumed_from,
                "lines": [line["step"] for line in result.log if "loss" in line],
            }
            print("TOLD", json.dumps(told), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
