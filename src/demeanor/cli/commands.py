"""The commands, one function each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..bake import bake as bake_control
from ..bake import merge
from ..behaviours import Behaviour
from ..contest import contested, estimators_for
from ..controls import Control, Direction, ablate, load_control, save_control, save_direction
from ..controls.files import CONTROL
from ..detect import make_detector
from ..dial import dial as turn_dial
from ..dial import doses as spread_doses
from ..errors import DataError
from ..estimates import ESTIMATORS
from ..find import Found, search_directions
from ..iterate import find_again
from ..job import run as run_plan
from ..measure.side_by_side import side_by_side
from ..measure.speaker import Speaker
from ..models import Session
from ..models.adapters import ADAPTER
from ..models.session import REPLY_TOKENS
from ..progress import say
from ..report import run_table
from ..report.table import contest_table, dial_table, layout_table, rounds_table, side_by_side_table
from ..runs import Plan
from ..select import rank_by_named
from ..writing import refuse_folder
from .options import (
    BEHAVIOUR_HELP,
    MODEL_HELP,
    AsJson,
    BehaviourName,
    Controls,
    Device,
    Dtype,
    FalsePositives,
    In4bit,
    In8bit,
    Layer,
    MaxPrompts,
    Model,
    RankByOption,
    ReplyTokens,
    Target,
    behaviour_for,
    given,
    held_in,
    opened,
    out,
    print_json,
    show,
)  # fmt: skip


def inspect(
    model: Model, device: Device = None, dtype: Dtype = None, in_4bit: In4bit = False, in_8bit: In8bit = False, as_json: AsJson = False
) -> None:
    """Prove what writes to the residual stream of a model, on a forward pass."""
    layout = opened(model, device, dtype, in_4bit, in_8bit).layout
    if as_json:
        print_json({**layout.to_json(), "hash": layout.hash})
        return
    out.print(layout_table(layout, f"{model}: {layout.model_type}, {layout.n_layers} layers, d_model {layout.d_model}"))
    tied = f"; output head tied to {layout.tied[0]}" if layout.tied else ""
    out.print(
        f"Every block accounted for (worst residual {layout.worst_residual:.0e}), ablation proven; structure {layout.hash}{tied}.",
        highlight=False,
    )


def run(
    context: typer.Context,
    model: Annotated[Optional[str], typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)] = None,
    behaviour: Annotated[Optional[str], typer.Option("--behaviour", "-b", help=BEHAVIOUR_HELP, show_default=False)] = None,
    folder: Annotated[
        Optional[Path], typer.Option("-o", "--out", help="The run folder to write; must not exist.", show_default=False)
    ] = None,
    layer: Layer = None,
    rank_by: RankByOption = None,
    doses: Annotated[int, typer.Option(help="How many doses of the dial to measure: an odd number up to 41, or 0 for none.")] = 9,
    false_positives: FalsePositives = 0.05,
    plan: Annotated[Optional[Path], typer.Option(help="Replay the plan.yaml of an earlier run.", show_default=False)] = None,
    device: Device = None,
    dtype: Dtype = None,
    in_4bit: In4bit = False,
    in_8bit: In8bit = False,
    reply_tokens: ReplyTokens = REPLY_TOKENS,
    max_prompts: MaxPrompts = None,
    as_json: AsJson = False,
) -> None:
    """The main job: find a behaviour, control it, measure both directions, bake, report."""
    if folder is None:
        raise DataError("The run needs a folder to write to; name a new one with -o.")
    if plan is not None:
        others = [name for name in context.params if name not in ("plan", "folder", "as_json")]
        useless = given(context, *others)
        if useless:
            raise DataError(f"--plan replays a run as it was; leave out {useless[0]}, or change it in a copy of the plan file.")
        wanted = Plan.from_file(plan)
    else:
        if model is None or behaviour is None:
            raise DataError(
                "A run needs MODEL and --behaviour (or --plan FILE); try: demeanor run organism --behaviour over-refusal -o RUN."
            )
        values = {
            "model": model, "behaviour": behaviour, "layer": layer, "rank_by": rank_by, "doses": doses, "false_positives": false_positives,
            "max_prompts": max_prompts, "device": device, "dtype": dtype, "quantized": held_in(in_4bit, in_8bit), "reply_tokens": reply_tokens,
        }  # fmt: skip
        wanted = Plan.of(values, "the command line")
    result = run_plan(wanted, folder)
    if as_json:
        print_json(json.loads((result.folder / "scores.json").read_text()))
        return
    out.print(run_table(result))
    if not result.behaviour.guard:
        out.print("guard: none", highlight=False)
    told = [f"Control: {result.control}.", result.decision.why()]
    if not result.removes:
        told.append("This control removes nothing that can be told from chance on the test split; do not use it as if it did.")
    if result.baked is not None and result.parity is not None:
        told.append(f"Baked: {result.baked}\nLoaded anew: {result.parity}.")
    if result.dial is not None:
        told.append(f"Dial: {result.dial.verdict()}")
    told.append(f"Report: {result.folder / 'report.html'}  ({result.seconds:.0f} s)")
    out.print("\n".join(told), highlight=False, soft_wrap=True)


def find(
    model: Model,
    behaviour: BehaviourName,
    target: Target,
    layer: Layer = None,
    rank_by: RankByOption = None,
    estimator: Annotated[
        Optional[list[str]],
        typer.Option(
            help=f"Try this estimator instead of the usual ones; repeat for several, of {', '.join(ESTIMATORS)}.", show_default=False
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Try all estimators and print what the best of each does when ablated (val).")
    ] = False,
    rank: Annotated[int, typer.Option(min=1, help="Find, project out, find again, up to this many directions in all.")] = 1,
    candidates: Annotated[
        int, typer.Option(min=1, help="Print the replies of this many best candidates side by side, and write them all.")
    ] = 1,
    device: Device = None,
    dtype: Dtype = None,
    in_4bit: In4bit = False,
    in_8bit: In8bit = False,
    reply_tokens: ReplyTokens = REPLY_TOKENS,
    max_prompts: MaxPrompts = None,
    as_json: AsJson = False,
) -> None:
    """Find and select the direction that carries a behaviour."""
    refuse_folder(target)
    if (rank > 1) + (candidates > 1) + compare > 1:
        raise DataError("--rank raises the rank of the best direction, --candidates and --compare show several; use one of them at a time.")
    wanted, by = behaviour_for(behaviour, model), rank_by_named(rank_by)
    wanted.needs_prompts()
    session = opened(model, device, dtype, in_4bit, in_8bit, reply_tokens)
    tried = estimators_for(wanted, estimator, compare)
    found = search_directions(session, wanted, layer=layer, max_prompts=max_prompts, rank_by=by, estimators=tried)
    if compare:
        contest = contested(session, wanted, found)
        save_direction(contest[0].direction, target)
        print_json([each.to_json() for each in contest]) if as_json else out.print(contest_table(contest, f"{wanted.name} in {model}"))
        return
    if candidates > 1:
        _show_candidates(session, wanted, found, candidates, target, as_json)
        return
    direction = find_again(session, found, make_detector(wanted.detect, session), rank) if rank > 1 else found.ranked()[0]
    save_direction(direction, target)
    facts = _facts(direction, target, found)
    if as_json:
        print_json({**facts, "rounds": [r.to_json() for r in direction.rounds]})
        return
    show(facts, f"{wanted.name} in {model}", as_json)
    if rank > 1:
        out.print(rounds_table(direction.rounds))


def _facts(direction: Direction, target: Path, found: Found) -> dict[str, Any]:
    first = next(i for i, other in enumerate(found.directions) if (other.site, other.estimator) == (direction.site, direction.estimator))
    did = found.candidates[first]
    return {
        "bypass, untouched": found.untouched, "bypass, ablated": did.bypass, "induce": did.induce, "kl": did.kl, "ranked by": found.rank_by,
        "discarded for": ", ".join(did.discarded) or "nothing",
        "site": str(direction.site), "estimator": direction.estimator, "rank": len(direction.basis), "separation": direction.separation,
        "auroc": direction.auroc, "split_half_cosine": direction.split_half_cosine, "p": direction.p, "candidates": len(direction.candidates),
        "shows.r": direction.component("shows"), "lacks.r": direction.component("lacks"), "file": str(target),
    }  # fmt: skip


def _show_candidates(session: Session, wanted: Behaviour, found: Found, count: int, target: Path, as_json: bool) -> None:
    """The best directions' replies side by side; the first is written to `target`, the others beside it, numbered."""
    best: Sequence[Direction] = found.ranked()[:count]
    if len(best) < count:
        say(f"Only {len(best)} candidates survived selection.")
    files = [target if number == 1 else target.with_name(f"{target.stem}.{number}{target.suffix}") for number in range(1, len(best) + 1)]
    said = side_by_side(session, wanted, {str(number): ablate(direction) for number, direction in enumerate(best, start=1)})
    for file, direction in zip(files, best):
        save_direction(direction, file)
    if as_json:
        rows = [{"set": row.set, "prompt": row.prompt.text, "replies": row.replies} for row in said]
        print_json({"candidates": [_facts(direction, file, found) for file, direction in zip(files, best)], "replies": rows})
        return
    out.print(side_by_side_table(said, f"{wanted.name}: replies on val, untouched and with each candidate ablated"))
    for number, (file, direction) in enumerate(zip(files, best), start=1):
        out.print(
            f"{number}: {direction.estimator}, {direction.site}, AUROC {direction.auroc:.3f}: {file}", highlight=False, soft_wrap=True
        )


def dial(
    model: Model,
    behaviour: BehaviourName,
    target: Target,
    doses: Annotated[
        int, typer.Option(min=3, max=41, help="How many doses to measure, from -1 to +1; an odd number, so that 0 is among them.")
    ] = 9,
    layer: Layer = None,
    device: Device = None,
    dtype: Dtype = None,
    in_4bit: In4bit = False,
    in_8bit: In8bit = False,
    reply_tokens: ReplyTokens = REPLY_TOKENS,
    max_prompts: MaxPrompts = None,
    as_json: AsJson = False,
) -> None:
    """Make a dial that turns a behaviour from removed (-1) to induced (+1), and measure it; use it as FILE:DOSE."""
    refuse_folder(target)
    at = spread_doses(doses)
    wanted = behaviour_for(behaviour, model)
    wanted.needs_prompts()
    session = opened(model, device, dtype, in_4bit, in_8bit, reply_tokens)
    found = search_directions(session, wanted, layer=layer, max_prompts=max_prompts)
    made = turn_dial(session, wanted, found, at, max_prompts)
    save_control(made.control, target)
    if as_json:
        print_json(made.to_json())
        return
    out.print(dial_table(made, f"{wanted.name} in {model}: test split, {made.direction.site}"))
    out.print(f"{made.verdict()}\nUse it as {target}:DOSE, such as --control {target}:-0.5.", highlight=False, soft_wrap=True)


def bake(model: Model, target: Target, control: Controls = None, as_json: AsJson = False) -> None:
    """Write a control into the weights, straight from the model's files; several are combined in the order given."""
    if not control:
        raise DataError("Baking needs a control; name its file with --control.")
    first = Path(control[0])
    if (first / ADAPTER).is_file() and not (first / CONTROL).is_file():  # made by another tool
        return _bake_adapter(model, control[0], control[1:], target, as_json)
    baked = bake_control(model, reduce(Control.then, map(load_control, control)), target)
    if as_json:
        print_json({**vars(baked), "folder": str(baked.folder), "left_out": list(baked.left_out)})
    else:
        out.print(str(baked), highlight=False, soft_wrap=True)


def _bake_adapter(model: str, adapter: str, rest: Sequence[str], target: Path, as_json: bool) -> None:
    """An adapter folder as a control: what it was trained to be is the model that further controls are baked into."""
    if rest:
        return bake(adapter, target, list(rest), as_json)
    folder = merge(model, adapter, target)
    if as_json:
        print_json({"folder": str(folder), "adapter": adapter})
    else:
        out.print(f"{folder}: the adapter {adapter} in the weights of {model}.", highlight=False, soft_wrap=True)


def chat(
    model: Model,
    message: Annotated[
        Optional[str], typer.Argument(help="Say this and print the reply; without it, a conversation.", show_default=False)
    ] = None,
    control: Controls = None,
    system: Annotated[Optional[str], typer.Option(help="A system prompt.", show_default=False)] = None,
    redo_if: Annotated[
        Optional[str],
        typer.Option(
            help="Put the controls in force only where the reply shows this behaviour, and do that reply again.", show_default=False
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest reply.")] = 128,
    device: Device = None,
    dtype: Dtype = None,
    in_4bit: In4bit = False,
    in_8bit: In8bit = False,
) -> None:
    """Talk to a model, with controls in force (in the order given) or without."""
    from ..chat import converse, say_once

    if redo_if is not None and not control:
        raise DataError("--redo-if does a reply again with a control; name one with --control.")
    wanted = None if redo_if is None else behaviour_for(redo_if, model)
    held = reduce(Control.then, map(load_control, control)) if control else None
    session: Session = opened(model, device, dtype, in_4bit, in_8bit)
    speaker = Speaker(session, held, redo=None if wanted is None else make_detector(wanted.detect, session))
    if message is not None:
        print(say_once(speaker, message, system, max_new_tokens))
    else:
        converse(speaker, system, max_new_tokens)
