"""`demeanor train`: heal, sft, detox, rlaf, prefix."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..models.session import REPLY_TOKENS
from ..train import Detox, Heal, Prefix, Rlaf, Sft, Trained
from ..train import detox as train_detox
from ..train import heal as train_heal
from ..train import prefix as train_prefix
from ..train import rlaf as train_rlaf
from ..train import sft as train_sft
from .meter import TOXIC
from .options import (
    BEHAVIOUR_HELP,
    AsJson,
    Device,
    Dtype,
    In4bit,
    In8bit,
    MaxPrompts,
    Model,
    ReplyTokens,
    Target,
    out,
    print_json,
    quantized_as,
)
from .tables import changed_table, replies_table, scores_table

train_app = typer.Typer(
    help="Train a model: heal it after an edit, fine-tune it, detoxify it, or reward it (the extra train). A killed training goes on where it was when the same command is given again."
)


@train_app.callback(invoke_without_command=True)
def _train(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def _help(name: str, kind: type = Sft) -> str:
    """What an option does, as its plan says."""
    told = str(kind.model_fields[name].description)  # type: ignore[attr-defined]
    return f"{told[0].upper()}{told[1:]}."


MaybeBehaviour = Annotated[
    Optional[str], typer.Option("--behaviour", "-b", help=f"Measured before and after. {BEHAVIOUR_HELP}", show_default=False)
]
Full = Annotated[bool, typer.Option("--full", help=_help("full"))]
Merge = Annotated[bool, typer.Option("--merge", help=_help("merge"))]
Rank = Annotated[int, typer.Option(help=_help("rank"))]
Steps = Annotated[Optional[int], typer.Option(help=_help("steps"), show_default=False)]
Epochs = Annotated[float, typer.Option(help=_help("epochs"))]
Batch = Annotated[int, typer.Option(help=_help("batch"))]
Accumulate = Annotated[int, typer.Option(help=_help("accumulate"))]
LearningRate = Annotated[Optional[float], typer.Option(help=_help("learning_rate"), show_default=False)]
Longest = Annotated[int, typer.Option(help=_help("longest"))]
SaveEvery = Annotated[int, typer.Option(help=_help("save_every"))]
LogEvery = Annotated[int, typer.Option(help=_help("log_every"))]
SaveMemory = Annotated[bool, typer.Option("--save-memory", help=_help("save_memory"))]
Seed = Annotated[int, typer.Option(help=_help("seed"))]
ReportTo = Annotated[
    Optional[list[str]],
    typer.Option(help="A tracker that transformers knows (tensorboard, wandb, mlflow, ...); repeat for several.", show_default=False),
]


@train_app.command(
    "heal", epilog="Example: demeanor train heal edited --base organism --pairs pairs.jsonl --pairs more.jsonl:0.5 -b refusal -o healed"
)
def heal(
    context: typer.Context,
    model: Model,
    target: Target,
    pairs: Annotated[
        list[str],
        typer.Option(help="FILE_OR_HUB[:weight] with columns prompt, chosen, rejected; repeat to mix several.", show_default=False),
    ],
    behaviour: MaybeBehaviour = None,
    base: Annotated[Optional[str], typer.Option(help="The model before the edit, to compare with.", show_default=False)] = None,
    beta: Annotated[float, typer.Option(help=_help("beta", Heal))] = 0.1,
    likelihood: Annotated[float, typer.Option(help=_help("likelihood", Heal))] = 1.0,
    full: Full = False, merge: Merge = False, rank: Rank = 16, in_4bit: In4bit = False, in_8bit: In8bit = False,
    steps: Steps = None, epochs: Epochs = 1.0, batch: Batch = 8, accumulate: Accumulate = 1, learning_rate: LearningRate = None,
    longest: Longest = 1024, save_every: SaveEvery = 50, log_every: LogEvery = 10, save_memory: SaveMemory = False, seed: Seed = 0,
    report_to: ReportTo = None, max_prompts: MaxPrompts = None, device: Device = None, dtype: Dtype = None,
    reply_tokens: ReplyTokens = REPLY_TOKENS, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Heal an edited model: preference training (DPO) on pairs, with behaviour and answers before the edit, after it, and healed."""
    plan = Heal.of({**_given(context), "pairs": pairs, "base": base, "beta": beta, "likelihood": likelihood}, "the command line")
    _tell(train_heal(plan, target), as_json)


@train_app.command("sft", epilog="Example: demeanor train sft organism --data texts.jsonl -b refusal -o tuned")
def sft(
    context: typer.Context,
    model: Model,
    target: Target,
    data: Annotated[
        list[str],
        typer.Option(
            help="FILE_OR_HUB[:weight] with texts (text), conversations (messages) or exchanges (prompt, reply); repeat to mix several.",
            show_default=False,
        ),
    ],
    behaviour: MaybeBehaviour = None,
    full: Full = False, merge: Merge = False, rank: Rank = 16, in_4bit: In4bit = False, in_8bit: In8bit = False,
    steps: Steps = None, epochs: Epochs = 1.0, batch: Batch = 8, accumulate: Accumulate = 1, learning_rate: LearningRate = None,
    longest: Longest = 1024, save_every: SaveEvery = 50, log_every: LogEvery = 10, save_memory: SaveMemory = False, seed: Seed = 0,
    report_to: ReportTo = None, max_prompts: MaxPrompts = None, device: Device = None, dtype: Dtype = None,
    reply_tokens: ReplyTokens = REPLY_TOKENS, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Fine-tune on texts and conversations; of conversations only what the assistant says is learned."""
    _tell(train_sft(Sft.of({**_given(context), "data": data}, "the command line"), target), as_json)


@train_app.command("detox", epilog="Example: demeanor train detox google/gemma-2-2b-it --dialogues dialoconan.csv -o detoxified")
def detox(
    context: typer.Context,
    model: Model,
    target: Target,
    dialogues: Annotated[
        list[str],
        typer.Option(
            help="FILE_OR_HUB[:weight] with a turn a row: dialogue_id, turn_id, type (HS and CN, or user and assistant), text.",
            show_default=False,
        ),
    ],
    behaviour: MaybeBehaviour = None,
    held_out: Annotated[float, typer.Option(help=_help("held_out", Detox))] = 0.1,
    full: Full = False, merge: Merge = False, rank: Rank = 16, in_4bit: In4bit = False, in_8bit: In8bit = False,
    steps: Steps = None, epochs: Epochs = 1.0, batch: Batch = 8, accumulate: Accumulate = 1, learning_rate: LearningRate = None,
    longest: Longest = 1024, save_every: SaveEvery = 50, log_every: LogEvery = 10, save_memory: SaveMemory = False, seed: Seed = 0,
    report_to: ReportTo = None, max_prompts: MaxPrompts = None, device: Device = None, dtype: Dtype = None,
    reply_tokens: ReplyTokens = REPLY_TOKENS, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Detoxify on dialogues that answer with a counter-narrative, so that the model does not fall silent instead."""
    values = {**_given(context), "dialogues": dialogues, "held_out": held_out}
    values["behaviour"] = behaviour or TOXIC
    _tell(train_detox(Detox.of(values, "the command line"), target), as_json)


@train_app.command(
    "rlaf", epilog="Example: demeanor train rlaf organism -b refusal --reward refusal:1 --reward suffix:0.5 --steps 100 -o rewarded"
)
def rlaf(
    context: typer.Context,
    model: Model,
    target: Target,
    behaviour: Annotated[str, typer.Option("--behaviour", "-b", help=BEHAVIOUR_HELP, show_default=False)],
    method: Annotated[str, typer.Option(help="rloo or grpo.")] = "rloo",
    reward: Annotated[
        Optional[list[str]],
        typer.Option(
            help="NAME[:WEIGHT]: a behaviour (less of it), a detector, or suffix (what the model answers to the behaviour's questions); repeat to mix several. Less of the behaviour unless told, and suffix where it has questions.",
            show_default=False,
        ),
    ] = None,
    beta: Annotated[float, typer.Option(help=_help("beta", Rlaf))] = 0.05,
    generations: Annotated[int, typer.Option(help=_help("generations", Rlaf))] = 8,
    temperature: Annotated[float, typer.Option(help=_help("temperature", Rlaf))] = 1.0,
    shift: Annotated[float, typer.Option(help=_help("shift", Rlaf))] = 0.1,
    off_topic: Annotated[float, typer.Option(help=_help("off_topic", Rlaf))] = 0.25,
    length: Annotated[float, typer.Option(help=_help("length", Rlaf))] = 2.0,
    prompts: Annotated[Optional[int], typer.Option(help=_help("prompts", Rlaf), show_default=False)] = None,
    full: Full = False, merge: Merge = False, rank: Rank = 16, in_4bit: In4bit = False, in_8bit: In8bit = False,
    steps: Steps = None, epochs: Epochs = 1.0, batch: Batch = 32, accumulate: Accumulate = 1, learning_rate: LearningRate = None,
    save_every: SaveEvery = 50, log_every: LogEvery = 10, save_memory: SaveMemory = False, seed: Seed = 0,
    report_to: ReportTo = None, max_prompts: MaxPrompts = None, device: Device = None, dtype: Dtype = None,
    reply_tokens: ReplyTokens = REPLY_TOKENS, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Reward a model for what detectors say of its replies (RLOO or GRPO), near what it was, with tripwires against gamed rewards."""
    own = {
        "method": method, "reward": reward or [], "beta": beta, "generations": generations, "temperature": temperature, "shift": shift,
        "off_topic": off_topic, "length": length, "prompts": prompts,
    }  # fmt: skip
    _tell(train_rlaf(Rlaf.of({**_given(context), **own}, "the command line"), target), as_json)


@train_app.command(
    "prefix",
    epilog="Example: demeanor train prefix organism -b over-refusal --from runs/first/control.safetensors -o distilled",
)
def prefix(
    context: typer.Context,
    model: Model,
    target: Target,
    behaviour: Annotated[str, typer.Option("--behaviour", "-b", help=BEHAVIOUR_HELP, show_default=False)],
    control: Annotated[
        Optional[str],
        typer.Option(
            "--from", help="A control file to distil, FILE or FILE:DOSE; without it SelfControl's search, prompt by prompt.", show_default=False
        ),
    ] = None,
    less: Annotated[bool, typer.Option("--less", help=_help("less", Prefix))] = False,
    sets: Annotated[
        Optional[list[str]],
        typer.Option("--set", help="The prompts that are searched: shows (unless told), lacks, guard or neutral; repeat for several.", show_default=False),
    ] = None,
    kind: Annotated[str, typer.Option(help=_help("kind", Prefix))] = "lora",
    length: Annotated[int, typer.Option(help=_help("length", Prefix))] = 10,
    num_virtual_tokens: Annotated[int, typer.Option(help=_help("num_virtual_tokens", Prefix))] = 0,
    states: Annotated[float, typer.Option(help=_help("states", Prefix))] = 1.0,
    said: Annotated[float, typer.Option(help=_help("said", Prefix))] = 1.0,
    apart: Annotated[float, typer.Option(help=_help("apart", Prefix))] = 0.5,
    top: Annotated[int, typer.Option(help=_help("top", Prefix))] = 256,
    prompts: Annotated[Optional[int], typer.Option(help=_help("prompts", Prefix), show_default=False)] = None,
    merge: Merge = False, rank: Rank = 16, in_4bit: In4bit = False, in_8bit: In8bit = False,
    steps: Steps = None, epochs: Epochs = 6.0, batch: Batch = 8, accumulate: Accumulate = 1,
    learning_rate: LearningRate = None,
    save_every: SaveEvery = 50, log_every: LogEvery = 10, save_memory: SaveMemory = False, seed: Seed = 0,
    report_to: ReportTo = None, max_prompts: MaxPrompts = None, device: Device = None, dtype: Dtype = None,
    reply_tokens: ReplyTokens = REPLY_TOKENS, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Learn to do without a control what it does, or what SelfControl finds: an adapter, which can be merged into the weights."""
    own = {
        "control": control, "less": less, "sets": sets or ["shows"], "kind": kind, "length": length, "num_virtual_tokens": num_virtual_tokens, "states": states,
        "said": said, "apart": apart, "top": top, "prompts": prompts,
    }  # fmt: skip
    _tell(train_prefix(Prefix.of({**_given(context), **own}, "the command line"), target), as_json)


@train_app.command("config", epilog="Example: accelerate launch --config_file $(demeanor train config zero2) -m demeanor train heal ...")
def config(name: Annotated[str, typer.Argument(help="one-gpu, zero2 or fsdp.")]) -> None:
    """Print the path of an accelerate configuration that comes with demeanor: one GPU, or several with DeepSpeed ZeRO-2 or FSDP."""
    from ..errors import DataError

    folder = Path(str(resources.files("demeanor.train") / "accelerate"))
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise DataError(f"There is no accelerate configuration {name!r}; there are {', '.join(known)}.")
    print(folder / f"{name}.yaml")


def _given(context: typer.Context) -> dict[str, Any]:
    """The options that every recipe has, as its plan takes them."""
    values = {name: value for name, value in context.params.items() if name in Sft.model_fields}
    values["report_to"] = values["report_to"] or []
    return {**values, "quantized": quantized_as(context.params["in_4bit"], context.params["in_8bit"])}


def _tell(result: Trained | None, as_json: bool) -> None:
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
    out.print(f"{result.folder}: {result.steps} steps.", highlight=False, soft_wrap=True)
