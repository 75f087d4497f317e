"""`demeanor control`: controls from directions, from other controls and from other tools' files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from ..behaviours import SetName
from ..controls import (
    Control,
    ablate,
    add,
    check,
    clamp,
    convert,
    load_control,
    load_direction,
    overlaps,
    read_layout,
    rotate,
    save_control,
    scale,
)
from ..controls.plan import AblatePlan, AddPlan, ClampPlan, ConvertPlan, DirectionPlan, RotatePlan, ScalePlan, ShowPlan, ThenPlan
from ..finding.gates import gate
from ..finding.plan import GatedPlan, SelectivePlan, WhenPlan
from ..finding.selective import selective
from ..measure import Bench, measure_all
from ..measure.condition import Condition
from ..models import Loading
from ..models.plan import BehaviourPlan
from ..progress import say
from .from_model import from_plans
from .options import AsJson, help_alone, show
from .outputs import Target
from .sessions import behaviour_named, opened
from .tables import scores_table
from .terminal import out, say_result

control_app = typer.Typer(
    help="Controls: made from a direction, put together, put behind gates, shown.", callback=help_alone, invoke_without_command=True
)


@control_app.command("ablate", epilog="Example: demeanor control ablate refusal.safetensors -o no-refusal.safetensors")
@from_plans
def control_ablate(source: DirectionPlan, plan: AblatePlan, gated: GatedPlan, loading: Loading, target: Target) -> None:
    """Removal of a direction from everything that writes to the stream."""
    direction = load_direction(source.direction)
    control = ablate(direction, plan.strength, None if plan.usual else plan.scope(direction))
    _save(_gated(control, gated, loading), target)


@control_app.command("scale", epilog="Example: demeanor control scale refusal.safetensors --factor 2 -o more.safetensors")
@from_plans
def control_scale(source: DirectionPlan, plan: ScalePlan, gated: GatedPlan, loading: Loading, target: Target) -> None:
    """More or less of a direction, in everything that writes to the stream."""
    direction = load_direction(source.direction)
    _save(_gated(scale(direction, plan.factor, plan.scope(direction)), gated, loading), target)


@control_app.command(
    "rotate", epilog="Example: demeanor control rotate gloom.safetensors cheer.safetensors --degrees 90 -o turned.safetensors"
)
@from_plans
def control_rotate(source: DirectionPlan, plan: RotatePlan, gated: GatedPlan, loading: Loading, target: Target) -> None:
    """A turn of what lies along one direction towards another, in the plane of the two."""
    direction = load_direction(source.direction)
    control = rotate(direction, load_direction(plan.towards), plan.degrees, plan.scope(direction))
    _save(_gated(control, gated, loading), target)


@control_app.command("add", epilog="Example: demeanor control add refusal.safetensors --dose -1 -o less.safetensors")
@from_plans
def control_add(source: DirectionPlan, plan: AddPlan, gated: GatedPlan, loading: Loading, target: Target) -> None:
    """A move of the stream along a direction at its site, on the last prompt token and the reply."""
    control = add(load_direction(source.direction), plan.dose, *plan.reach(), along=plan.along)
    _save(_gated(control, gated, loading), target)


@control_app.command("clamp", epilog="Example: demeanor control clamp refusal.safetensors --to lacks -o held.safetensors")
@from_plans
def control_clamp(source: DirectionPlan, plan: ClampPlan, gated: GatedPlan, loading: Loading, target: Target) -> None:
    """A hold on the component along a direction at its site, on the last prompt token and the reply."""
    control = clamp(load_direction(source.direction), plan.to, *plan.reach())
    _save(_gated(control, gated, loading), target)


@control_app.command(
    "selective", epilog="Example: demeanor control selective refusal.safetensors organism -b over-refusal -o selective.safetensors"
)
@from_plans
def control_selective(source: DirectionPlan, subject: BehaviourPlan, plan: SelectivePlan, loading: Loading, target: Target) -> None:
    """Removal of a direction where a behaviour's shows prompts end, and nowhere else, fitted so that weights can hold it: the guard is kept without a gate."""
    direction = load_direction(source.direction)
    named = behaviour_named(subject.behaviour)
    named.needs_prompts()
    session = opened(subject.model, loading)
    _save(selective(session, named.settled(session), direction, plan), target)


@control_app.command(
    "when", epilog="Example: demeanor control when c.safetensors --model organism --like over-refusal --unlike gloom -o gated.safetensors"
)
@from_plans
def control_when(plan: WhenPlan, loading: Loading, target: Target) -> None:
    """A control behind gates: this and not that. A gate tells a behaviour's shows set from its guard set, or from lacks where it has none."""
    control = load_control(plan.control)
    named = [(behaviour_named(name), turned) for names, turned in ((plan.like, False), (plan.unlike, True)) for name in names]
    session = opened(plan.model, loading)
    for behaviour, turned in ((preset.settled(session), turned) for preset, turned in named):
        against: SetName = "guard" if behaviour.guard else "lacks"
        fitted = gate(session, behaviour, false_positives=plan.false_positives, against=(against,), kind=plan.kind)
        control = control.when(~fitted if turned else fitted)
    _save(control, target)


@control_app.command("then", epilog="Example: demeanor control then no-refusal.safetensors cheer.safetensors:0.5 -o both.safetensors")
@from_plans
def control_then(plan: ThenPlan, loading: Loading, target: Target) -> None:
    """Two controls, one after the other, how far they overlap and what each does to the other's behaviour."""
    first, second = load_control(plan.first), load_control(plan.second)
    both = first.then(second)
    named = [behaviour_named(name) for name in plan.behaviours]
    _save(both, target)
    for overlap in overlaps(both):
        say_result(f"Overlap of {overlap}.")
    if plan.model is None:
        return
    session = opened(plan.model, loading)
    conditions = {plan.first: Condition(session, first), plan.second: Condition(session, second), "both": Condition(session, both)}
    for behaviour in (preset.settled(session) for preset in named):
        measured = measure_all(Bench(session, behaviour, "val", max_prompts=plan.max_prompts), conditions)
        out.print(scores_table(measured, f"{behaviour.name} in {plan.model}: val split"))


@control_app.command("convert", epilog="Example: demeanor control convert direction.pt --like google/gemma-2b-it -o c.safetensors")
@from_plans
def control_convert(plan: ConvertPlan, loading: Loading, target: Target) -> None:
    """A control from what another tool made: the ablation of a direction, a control vector of llama.cpp, or a LoRA adapter."""
    if Path(plan.like).is_file():
        layout, name = read_layout(plan.like)
    else:
        session = opened(plan.like, loading)
        layout, name = session.layout, session.name
    _save(convert(plan.file, layout, name, plan.strength), target)


@control_app.command("show", epilog="Example: demeanor control show runs/first/control.safetensors --check organism")
@from_plans
def control_show(plan: ShowPlan, loading: Loading, as_json: AsJson = False) -> None:
    """What a control does, to which structure, and how it was made."""
    control = load_control(plan.control)
    facts = _facts(control)
    if plan.check is not None:
        facts["check"] = str(check(opened(plan.check, loading), control))
    facts["made from"] = dict(control.made_from) if as_json else json.dumps(dict(control.made_from))
    show(facts, plan.control, as_json)


def _facts(control: Control) -> dict[str, Any]:
    kinds = {"part": control.parts, "adapter": control.adapters, "states": control.states}
    facts = {f"{kind} {number}": str(part) for kind, parts in kinds.items() for number, part in enumerate(parts, start=1)}
    facts |= {f"overlap {number}": str(overlap) for number, overlap in enumerate(overlaps(control), start=1)}
    facts |= {"model": control.model_name, "structure": control.layout_hash, "bakeable": control.bakeable() or "yes"}
    gates = dict.fromkeys(gate for part in control.parts for gate in part.gates)
    return facts | {
        f"gate {number}": f"{gate}: AUROC {gate.auroc:.3f}, fires on {gate.hits:.3f} of shows and {gate.false_positives:.3f} of the others"
        f" (held out{', before it is turned round' if gate.negated else ''})"
        for number, gate in enumerate(gates, start=1)
    }


def _gated(control: Control, plan: GatedPlan, loading: Loading) -> Control:
    """The control behind a gate, where one was asked for."""
    if plan.gate is None or plan.model is None:
        return control
    named = behaviour_named(plan.gate)
    return control.when(gate(opened(plan.model, loading), named, false_positives=plan.false_positives))


def _save(control: Control, target: Path) -> None:
    save_control(control, target)
    say(f"{target}: {control}.")
