"""`demeanor selfcontrol`: replies steered by what the model itself says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.table import Table

from ..behaviours import SET_NAMES, Behaviour, Preset, Prompt, SetName, asked, opposites
from ..behaviours import behaviour as read_behaviour
from ..behaviours.prompts import SPLITS, Columns, Split, prompts_from_rows
from ..detect import check_detector
from ..errors import CheckFailed, DataError
from ..io.atomic import new_folder, refuse_existing, refuse_folder
from ..io.tables import read_rows
from ..models import Session
from ..models.session import REPLY_TOKENS
from ..progress import say
from ..selfcontrol import Outcome, Settings, norms, outcome, preference_pairs, search, write_pairs, write_run
from ..selfcontrol.page import write_norms_page, write_selfcontrol_page
from .options import BEHAVIOUR_HELP, AsJson, Device, Dtype, In4bit, In8bit, Model, ReplyTokens, Target, opened, out, print_json

selfcontrol_app = typer.Typer(help="Search for each prompt's states under which the model, when asked, approves of its own reply.")
DEFAULTS = Settings()
PATTERNS = 32  # prompts whose gradients make the pictures of a run


def _help(name: str) -> str:
    return f"{(Settings.model_fields[name].description or '').capitalize()}."


BehaviourOption = Annotated[
    Optional[str],
    typer.Option("--behaviour", "-b", help=f"{BEHAVIOUR_HELP} Its questions steer, its detector judges beside them.", show_default=False),
]
Questions = Annotated[
    Optional[list[str]],
    typer.Option(
        "--question", "-q", show_default=False,
        help="A yes-no question about the reply, or a preset of them (helpful, harmless, toxic, anger, ...); repeat to weigh several.",
    ),
]  # fmt: skip
Less = Annotated[bool, typer.Option("--less", help="Steer away: the other answer to every question is wanted.")]
Prompts = Annotated[
    Optional[Path],
    typer.Option(help="A CSV, JSON, JSONL, text or Parquet file of prompts; those of the behaviour if none is named.", show_default=False),
]
Column = Annotated[str, typer.Option(help="The column of prompts in that file.")]
SetOption = Annotated[str, typer.Option("--set", help="Which prompts of the behaviour: shows, lacks, guard or neutral.")]
SplitOption = Annotated[str, typer.Option("--split", help="Which split of them: train, val or test.")]
Most = Annotated[Optional[int], typer.Option("--max-prompts", min=1, help="Use at most this many prompts.", show_default=False)]
Iterations = Annotated[int, typer.Option(min=1, help=_help("iterations"))]
Eta = Annotated[float, typer.Option(min=1e-6, help=_help("eta"))]
Goal = Annotated[float, typer.Option(min=0.0, max=1.0, help=_help("goal"))]
Branches = Annotated[int, typer.Option(min=1, help=_help("branches"))]
Top = Annotated[Optional[int], typer.Option(min=1, help=_help("top"), show_default=False)]


@selfcontrol_app.callback(invoke_without_command=True)
def _selfcontrol(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def _named(behaviour: str | None, question: list[str] | None) -> list[Behaviour | Preset]:
    """What steers, a behaviour or one for every question; mistakes in them are told before a model is loaded."""
    if (behaviour is None) == (not question):
        raise DataError("SelfControl needs either --behaviour or --question, to know what to ask the model about its replies.")
    if behaviour is None:
        return [read_behaviour(question=text) for text in question or []]
    named = read_behaviour(behaviour)
    check_detector(named)
    if isinstance(named, Behaviour) and not named.questions:
        raise DataError(f"The behaviour {named.name!r} has no questions; add `questions: [{{ask: ..., want: yes}}]` to its file.")
    return [named]


def _steering(named: Sequence[Behaviour | Preset], session: Session, less: bool) -> Behaviour:
    """All of what steers as one behaviour, settled by the model and wanted as the command says; the first one judges."""
    settled = [each.settled(session) for each in named]
    questions = tuple(question for each in settled for question in each.questions)
    name = " and ".join(each.name for each in settled)
    return replace(settled[0], name=name, questions=opposites(questions) if less else questions)


@dataclass(frozen=True)
class PromptChoice:
    """Which prompts a command names: those of a file (already read), or those of a set and split of the behaviour."""

    rows: list[Prompt] | None
    of: SetName
    split: Split

    @classmethod
    def named(cls, named: Sequence[Behaviour | Preset], file: Path | None, column: str, of: str, split: str) -> PromptChoice:
        """Raises DataError for an unreadable file, an unknown set or split, and where there is neither a file nor a behaviour's set."""
        rows = None if file is None else asked(prompts_from_rows(read_rows(file), Columns(prompt=column), str(file)))
        name, part = next((name for name in SET_NAMES if name == of), None), next((name for name in SPLITS if name == split), None)
        if rows is None and (name is None or part is None):
            raise DataError(f"Prompts are of a set ({', '.join(SET_NAMES)}) and a split ({', '.join(SPLITS)}); {of!r}, {split!r} are not.")
        chosen = cls(rows, name or "shows", part or "test")
        for behaviour in named:
            if isinstance(behaviour, Behaviour):
                chosen.prompts(behaviour, None)
        return chosen

    def prompts(self, behaviour: Behaviour, most: int | None) -> list[Prompt]:
        """At most `most` of them. DataError where the behaviour has none there."""
        if self.rows is not None:
            return self.rows[:most]
        found = asked(behaviour.set(self.of, self.split, most))
        if not found:
            raise DataError(f"{behaviour.name!r} has no {self.split} prompts in {self.of}; name a file of prompts with --prompts.")
        return found


@selfcontrol_app.command(
    "run", epilog="Example: demeanor selfcontrol run organism --behaviour over-refusal --max-prompts 20 -o runs/selfcontrol"
)
def selfcontrol_run(
    model: Model,
    target: Target,
    behaviour: BehaviourOption = None,
    question: Questions = None,
    less: Less = False,
    prompts: Prompts = None,
    column: Column = "prompt",
    of: SetOption = "shows",
    split: SplitOption = "test",
    max_prompts: Most = None,
    iterations: Iterations = DEFAULTS.iterations,
    eta: Eta = DEFAULTS.eta,
    branches: Branches = DEFAULTS.branches,
    goal: Goal = DEFAULTS.goal,
    top: Top = None,
    device: Device = None,
    dtype: Dtype = None,
    in_4bit: In4bit = False,
    in_8bit: In8bit = False,
    reply_tokens: ReplyTokens = REPLY_TOKENS,
    as_json: AsJson = False,
) -> None:
    """Search the states of every prompt; write them as a control for these prompts, with all that was tried and a report."""
    refuse_existing(target)
    named = _named(behaviour, question)
    settings = Settings(iterations=iterations, eta=eta, branches=branches, goal=goal, top=top)
    chosen = PromptChoice.named(named, prompts, column, of, split)
    session = opened(model, device, dtype, in_4bit, in_8bit, reply_tokens)
    wanted = _steering(named, session, less)
    given = chosen.prompts(wanted, max_prompts)
    found = search(session, given, wanted.questions, settings)
    if (remark := found.remark(model)) is not None:
        say(remark)
    told = outcome(session, found, wanted.detect)
    patterns = norms(session, given[:PATTERNS], {wanted.name: wanted.questions})
    tokens = [str(session.tokenizer.decode([token])) for token in found.changed[0].ids] if found.changed else None
    with new_folder(target) as folder:
        write_run(found, told, session, folder)
        write_selfcontrol_page(found, told, f"{model}: {wanted.name}", folder / "report.html", patterns, tokens)
    if as_json:
        print_json({**told.to_json(), "prompts": len(found.traces), "changed": len(found.changed)})
        return
    out.print(_table(told, f"{model}, {wanted.name}: {len(found.changed)} of {len(found.traces)} replies changed"))
    say(f"{target}: report.html, control.safetensors. Then: demeanor chat {model} --control {target / 'control.safetensors'}")


def _table(told: Outcome, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("", "before", "after", "change"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, before in told.before.items():
        if before.n:
            table.add_row(name, str(before), str(told.after[name]), f"{told.delta[name].value:+.3f}")
    return table


@selfcontrol_app.command("pairs", epilog="Example: demeanor selfcontrol pairs organism -q happiness --prompts emotions.json -o pairs.jsonl")
def selfcontrol_pairs(
    model: Model,
    target: Target,
    behaviour: BehaviourOption = None,
    question: Questions = None,
    less: Less = False,
    prompts: Prompts = None,
    column: Column = "prompt",
    of: SetOption = "shows",
    split: SplitOption = "train",
    max_prompts: Most = None,
    iterations: Iterations = DEFAULTS.iterations,
    eta: Eta = DEFAULTS.eta,
    branches: Branches = DEFAULTS.branches,
    goal: Goal = DEFAULTS.goal,
    device: Device = None,
    dtype: Dtype = None,
    in_4bit: In4bit = False,
    in_8bit: In8bit = False,
    reply_tokens: ReplyTokens = REPLY_TOKENS,
    as_json: AsJson = False,
) -> None:
    """Write preference pairs (prompt, chosen, rejected a line): steered towards what is wanted, and steered away."""
    refuse_folder(target)
    named = _named(behaviour, question)
    chosen = PromptChoice.named(named, prompts, column, of, split)
    session = opened(model, device, dtype, in_4bit, in_8bit, reply_tokens)
    wanted = _steering(named, session, less)
    given = chosen.prompts(wanted, max_prompts)
    made, _, _ = preference_pairs(session, given, wanted.questions, Settings(iterations=iterations, eta=eta, branches=branches, goal=goal))
    if not made:
        raise CheckFailed(f"None of {len(given)} prompts gave a pair: steered towards and away, each ended in the same reply.")
    write_pairs(made, session, target)
    if as_json:
        print_json({"pairs": len(made), "prompts": len(given)})
    else:
        say(f"{target}: {len(made)} pairs from {len(given)} prompts; the others ended in one reply both ways.")


@selfcontrol_app.command(
    "norms", epilog="Example: demeanor selfcontrol norms organism -q refusal -q happiness --prompts emotions.json -o norms.html"
)
def selfcontrol_norms(
    model: Model,
    question: Questions = None,
    prompts: Prompts = None,
    column: Column = "prompt",
    behaviour: BehaviourOption = None,
    of: SetOption = "shows",
    split: SplitOption = "train",
    max_prompts: Most = 64,
    target: Annotated[
        Optional[Path], typer.Option("-o", "--out", help="Also draw heat maps into this HTML file.", show_default=False)
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    in_4bit: In4bit = False,
    in_8bit: In8bit = False,
    as_json: AsJson = False,
) -> None:
    """Where each question's gradient is: its norm per layer, a column per question. Prompts come from a file or a behaviour."""
    if target is not None:
        refuse_folder(target)
    named = [each for sources in ((behaviour, None), (None, question)) if any(sources) for each in _named(*sources)]
    if not named:
        raise DataError("A norm pattern is of a question; name one with --question, or a behaviour with --behaviour.")
    chosen = PromptChoice.named(named[:1], prompts, column, of, split)
    session: Session = opened(model, device, dtype, in_4bit, in_8bit)
    settled = [each.settled(session) for each in named]
    patterns = norms(session, chosen.prompts(settled[0], max_prompts), {each.name: each.questions for each in settled})
    if target is not None:
        write_norms_page(patterns, f"{model}: gradient norms", target)
    if as_json:
        told: dict[str, Any] = {
            name: {"n": each.n, "layers": each.layers.tolist(), "effect": each.effect.tolist(), "tokens": each.tokens.tolist()}
            for name, each in patterns.items()
        }
        print_json(told)
        return
    table = Table(title=f"Mean |g| of {next(iter(patterns.values())).n} prompts", title_justify="left")
    for heading in ("layer", *patterns):
        table.add_column(heading, justify="right")
    for layer in range(session.layout.n_layers):
        table.add_row(str(layer), *(f"{each.layers[layer]:.2e}" for each in patterns.values()))
    out.print(table)
