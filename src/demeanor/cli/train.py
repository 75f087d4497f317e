"""`demeanor train`: heal, sft, detox, rlaf, prefix."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from ..errors import DataError
from ..train import Detox, Heal, Prefix, Rlaf, Sft, Trained
from ..train import detox as train_detox
from ..train import heal as train_heal
from ..train import prefix as train_prefix
from ..train import rlaf as train_rlaf
from ..train import sft as train_sft
from .from_model import from_plans
from .options import AsJson, help_alone, print_json
from .outputs import TargetFolder
from .tables import changed_table, replies_table, scores_table
from .terminal import out, say_result

train_app = typer.Typer(
    help="Training: healing after an edit, fine-tuning, detoxifying, rewards (the extra train). A killed one goes on when the same command is given again.",
    callback=help_alone, invoke_without_command=True,
)  # fmt: skip


@train_app.command(
    "heal", epilog="Example: demeanor train heal edited --base organism --pairs pairs.jsonl --pairs more.jsonl:0.5 -b refusal -o healed"
)
@from_plans
def heal(plan: Heal, target: TargetFolder, as_json: AsJson = False) -> None:
    """Preference training (DPO) of an edited model on pairs; behaviour and answers before the edit, after it, and healed."""
    _show(train_heal(plan, target), as_json)


@train_app.command("sft", epilog="Example: demeanor train sft organism --data texts.jsonl -b refusal -o tuned")
@from_plans
def sft(plan: Sft, target: TargetFolder, as_json: AsJson = False) -> None:
    """Fine-tuning on texts and conversations; of conversations only what the assistant says is learned."""
    _show(train_sft(plan, target), as_json)


@train_app.command("detox", epilog="Example: demeanor train detox google/gemma-2-2b-it --dialogues dialoconan.csv -o detoxified")
@from_plans
def detox(plan: Detox, target: TargetFolder, as_json: AsJson = False) -> None:
    """Detoxifying on dialogues that answer with a counter-narrative, so that the model does not fall silent instead."""
    _show(train_detox(plan, target), as_json)


@train_app.command(
    "rlaf", epilog="Example: demeanor train rlaf organism -b refusal --reward refusal:1 --reward suffix:0.5 --max-steps 100 -o rewarded"
)
@from_plans
def rlaf(plan: Rlaf, target: TargetFolder, as_json: AsJson = False) -> None:
    """Rewards for what detectors say of a model's replies (RLOO or GRPO), near what it was, with tripwires against gamed rewards."""
    _show(train_rlaf(plan, target), as_json)


@train_app.command(
    "prefix", epilog="Example: demeanor train prefix organism -b over-refusal --from runs/first/control.safetensors -o distilled"
)
@from_plans
def prefix(plan: Prefix, target: TargetFolder, as_json: AsJson = False) -> None:
    """An adapter that does without a control what it does, or what SelfControl finds; it can be merged into the weights."""
    _show(train_prefix(plan, target), as_json)


@train_app.command("config", epilog="Example: accelerate launch --config_file $(demeanor train config zero2) -m demeanor train heal ...")
def config(name: Annotated[str, typer.Argument(help="one-gpu, zero2 or fsdp.")]) -> None:
    """Path of an accelerate configuration that comes with demeanor: one GPU, or several with DeepSpeed ZeRO-2 or FSDP."""
    folder = Path(str(resources.files("demeanor.train") / "accelerate"))
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise DataError(f"There is no accelerate configuration {name!r}; there are {', '.join(known)}.")
    print(folder / f"{name}.yaml")


def _show(result: Trained | None, as_json: bool) -> None:
    """What came of a training; nothing on the further processes of a launch."""
    if result is None:
        return
    if as_json:
        print_json(result.to_json())
        return
    if result.measurements:
        out.print(scores_table(result.measurements, f"{result.plan.behaviour}: test split"))
        out.print(replies_table(result.replies))
    if result.changed is not None:
        out.print(changed_table(result.changed))
    if result.since_base is not None:
        out.print(changed_table(result.since_base, "Inside, against the model before the edit"))
    say_result(f"{result.folder}: {result.steps} steps.")
