"""`demeanor control`: controls from directions, from other controls and from other tools' files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..algebra.schedule import triangular
from ..behaviours import SetName
from ..controls import (
    Control,
    Direction,
    Scope,
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
from ..errors import DataError
from ..finding.gates import gate as make_gate
from ..io.atomic import refuse_folder
from ..measure import Bench, measure_all
from ..measure.condition import Condition
from ..models import Site, load
from ..progress import say
from .options import (
    BEHAVIOUR_HELP,
    AsJson,
    DirectionFile,
    FalsePositives,
    GateBehaviour,
    GateModel,
    MaxPrompts,
    Target,
    behaviour_named,
    gated,
    out,
    show,
)
from .tables import scores_table

control_app = typer.Typer(help="Make a control from a direction, put two together, or show one.")

Tokens = Annotated[
    str,
    typer.Option(
        help="all, prompt, reply, last_and_reply, read (the one where the direction was read), or places in the prompt such as -1,-2 (-1 is its last token)."
    ),
]
AtSite = Annotated[bool, typer.Option("--at-site", help="Act at the direction's own site instead of at every writer.")]
Kernel = Annotated[
    Optional[str],
    typer.Option(
        metavar="PEAK,POSITION,HALF_WIDTH,EDGE",
        help="Weigh layers by a triangle: PEAK at POSITION, EDGE at HALF_WIDTH from it, 0 beyond; positions from 0 (first layer) to 1 (last).",
        show_default=False,
    ),
]


@control_app.callback(invoke_without_command=True)
def _control(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@control_app.command("ablate", epilog="Example: demeanor control ablate refusal.safetensors -o no-refusal.safetensors")
def control_ablate(
    context: typer.Context,
    direction: DirectionFile,
    target: Target,
    strength: Annotated[float, typer.Option(help="Share of the component to remove; 1 removes it whole.")] = 1.0,
    tokens: Tokens = "all",
    at_site: AtSite = False,
    kernel: Kernel = None,
    gate: GateBehaviour = None,
    model: GateModel = None,
    false_positives: FalsePositives = 0.05,
) -> None:
    """Remove a direction from everything that writes to the stream."""
    refuse_folder(target)
    read = load_direction(direction)
    usual = tokens == "all" and not at_site and kernel is None  # of readers, that is their own site
    control = ablate(read, strength, None if usual else _scope(read, tokens, at_site, kernel))
    _save(gated(context, control, gate, model, false_positives), target)


@control_app.command("scale", epilog="Example: demeanor control scale refusal.safetensors --factor 2 -o more.safetensors")
def control_scale(
    context: typer.Context,
    direction: DirectionFile,
    target: Target,
    factor: Annotated[float, typer.Option(help="What the component is multiplied with; 0 removes it, -1 mirrors it.", show_default=False)],
    tokens: Tokens = "all",
    at_site: AtSite = False,
    kernel: Kernel = None,
    gate: GateBehaviour = None,
    model: GateModel = None,
    false_positives: FalsePositives = 0.05,
) -> None:
    """Multiply what everything that writes to the stream writes along a direction."""
    refuse_folder(target)
    read = load_direction(direction)
    control = scale(read, factor, _scope(read, tokens, at_site, kernel))
    _save(gated(context, control, gate, model, false_positives), target)


@control_app.command(
    "rotate", epilog="Example: demeanor control rotate gloom.safetensors cheer.safetensors --degrees 90 -o turned.safetensors"
)
def control_rotate(
    context: typer.Context,
    direction: DirectionFile,
    towards: Annotated[Path, typer.Argument(help="The direction to turn towards.")],
    target: Target,
    degrees: Annotated[float, typer.Option(help="How far, -360 to 360.", show_default=False)],
    tokens: Tokens = "all",
    at_site: AtSite = False,
    kernel: Kernel = None,
    gate: GateBehaviour = None,
    model: GateModel = None,
    false_positives: FalsePositives = 0.05,
) -> None:
    """Turn what lies along one direction towards another, in the plane of the two."""
    refuse_folder(target)
    read = load_direction(direction)
    control = rotate(read, load_direction(towards), degrees, _scope(read, tokens, at_site, kernel))
    _save(gated(context, control, gate, model, false_positives), target)


@control_app.command("add", epilog="Example: demeanor control add refusal.safetensors --dose -1 -o less.safetensors")
def control_add(
    context: typer.Context,
    direction: DirectionFile,
    target: Target,
    dose: Annotated[float, typer.Option(help="-1 moves from the shows mean to the lacks mean, +1 the other way.", show_default=False)],
    tokens: Tokens = "last_and_reply",
    gate: GateBehaviour = None,
    model: GateModel = None,
    false_positives: FalsePositives = 0.05,
) -> None:
    """Move the stream along a direction at its site, on the last prompt token and the reply."""
    refuse_folder(target)
    control = add(load_direction(direction), dose, *_tokens(tokens))
    _save(gated(context, control, gate, model, false_positives), target)


@control_app.command("clamp", epilog="Example: demeanor control clamp refusal.safetensors --to lacks -o held.safetensors")
def control_clamp(
    context: typer.Context,
    direction: DirectionFile,
    target: Target,
    to: Annotated[str, typer.Option(help="lacks, shows (the means of those sets), or a number.")] = "lacks",
    tokens: Tokens = "last_and_reply",
    gate: GateBehaviour = None,
    model: GateModel = None,
    false_positives: FalsePositives = 0.05,
) -> None:
    """Hold the component along a direction at its site, on the last prompt token and the reply."""
    refuse_folder(target)
    control = clamp(load_direction(direction), _held(to), *_tokens(tokens))
    _save(gated(context, control, gate, model, false_positives), target)


@control_app.command(
    "when", epilog="Example: demeanor control when c.safetensors --model organism --like over-refusal --unlike gloom -o gated.safetensors"
)
def control_when(
    control: Annotated[str, typer.Argument(help="A control file, FILE or FILE:DOSE.")],
    target: Target,
    model: Annotated[str, typer.Option(help="The model that the gates are fitted on.", show_default=False)],
    like: Annotated[
        Optional[list[str]],
        typer.Option(help="Act only on prompts like those of this behaviour's shows set; of several, where all are so.", show_default=False),
    ] = None,
    unlike: Annotated[
        Optional[list[str]], typer.Option(help="And not on prompts like those of this behaviour's shows set; repeat for several.", show_default=False)
    ] = None,
    kind: Annotated[str, typer.Option(help="What a gate reads: probe (the stream, along a logistic probe) or cosine.")] = "probe",
    false_positives: FalsePositives = 0.05,
) -> None:  # fmt: skip
    """Put a control behind gates: this and not that. A gate tells a behaviour's shows set from its guard set, or from lacks where it has none."""
    refuse_folder(target)
    if not like and not unlike:
        raise DataError("A gate needs to know what prompts it fires on; name a behaviour with --like or --unlike.")
    made = load_control(control)
    named = [(behaviour_named(name), turned) for names, turned in ((like, False), (unlike, True)) for name in names or ()]
    session = load(model)
    for behaviour, turned in ((each.settled(session), turned) for each, turned in named):
        against: SetName = "guard" if behaviour.guard else "lacks"
        fitted = make_gate(session, behaviour, false_positives=false_positives, against=(against,), kind=kind)  # type: ignore[arg-type]
        made = made.when(~fitted if turned else fitted)
    _save(made, target)


@control_app.command("then", epilog="Example: demeanor control then no-refusal.safetensors cheer.safetensors:0.5 -o both.safetensors")
def control_then(
    context: typer.Context,
    first: Annotated[str, typer.Argument(help="A control file, FILE or FILE:DOSE.")],
    second: Annotated[str, typer.Argument(help="The control that acts after it, FILE or FILE:DOSE.")],
    target: Target,
    model: Annotated[
        Optional[str], typer.Option(help="Also measure on this model what each and both do to every --behaviour (val).", show_default=False)
    ] = None,
    behaviour: Annotated[Optional[list[str]], typer.Option("--behaviour", "-b", help=BEHAVIOUR_HELP, show_default=False)] = None,
    max_prompts: MaxPrompts = None,
) -> None:  # fmt: skip
    """Put two controls together, in this order, and say how far they overlap and what each does to the other's behaviour."""
    refuse_folder(target)
    if (model is None) != (not behaviour):
        raise DataError(
            "What controls do to each other's behaviours is measured on a model; give both --model and --behaviour, or neither."
        )
    one, other = load_control(first), load_control(second)
    both = one.then(other)
    named = [behaviour_named(name) for name in behaviour or ()]
    _save(both, target)
    for overlap in overlaps(both):
        out.print(f"Overlap of {overlap}.", highlight=False)
    if model is None:
        return
    session = load(model)
    conditions = {first: Condition(session, one), second: Condition(session, other), "both": Condition(session, both)}
    for each in (preset.settled(session) for preset in named):
        measured = measure_all(Bench(session, each, "val", max_prompts=max_prompts), conditions)
        out.print(scores_table(measured, f"{each.name} in {model}: val split"))


@control_app.command("convert", epilog="Example: demeanor control convert direction.pt --like google/gemma-2b-it -o c.safetensors")
def control_convert(
    file: Annotated[
        Path, typer.Argument(help="A direction of another tool, one tensor [d_model] in a .pt file; or a PEFT adapter folder.")
    ],
    target: Target,
    like: Annotated[
        str,
        typer.Option(
            help="What it is for: a model, or a file that holds its structure (a control, a direction, the JSON of inspect).",
            show_default=False,
        ),
    ],
    strength: Annotated[float, typer.Option(help="Share of the component to remove; 1 removes it whole.")] = 1.0,
) -> None:
    """Make a control of what another tool made: the ablation of a direction, or a LoRA adapter."""
    refuse_folder(target)
    if Path(like).is_file():
        layout, name = read_layout(like)
    else:
        session = load(like)
        layout, name = session.layout, session.name
    _save(convert(file, layout, name, strength), target)


def _save(control: Control, target: Path) -> None:
    save_control(control, target)
    say(f"{target}: {control}.")


@control_app.command("show", epilog="Example: demeanor control show runs/first/control.safetensors --check organism")
def control_show(
    control: Annotated[str, typer.Argument(help="A control file, FILE or FILE:DOSE.")],
    model: Annotated[
        Optional[str],
        typer.Option("--check", metavar="MODEL", help="Also count what the control really edits in this model.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a control does, to which structure, and how it was made."""
    read = load_control(control)
    held = {"part": read.parts, "adapter": read.adapters, "states": read.states}
    facts: dict[str, Any] = {f"{kind} {number}": str(each) for kind, every in held.items() for number, each in enumerate(every, start=1)}
    facts |= {f"overlap {number}": str(overlap) for number, overlap in enumerate(overlaps(read), start=1)}
    facts |= {"model": read.model_name, "structure": read.layout_hash, "bakeable": read.bakeable() or "yes"}
    for number, gate in enumerate(dict.fromkeys(gate for part in read.parts for gate in part.gates), start=1):
        facts[f"gate {number}"] = (
            f"{gate}: AUROC {gate.auroc:.3f}, fires on {gate.hits:.3f} of shows and {gate.false_positives:.3f} of the others"
            f" (held out{', before it is turned round' if gate.negated else ''})"
        )
    if model is not None:
        facts["check"] = str(check(load(model), read))
    facts |= {"made from": dict(read.made_from) if as_json else json.dumps(dict(read.made_from))}
    show(facts, control, as_json)


def _tokens(text: str) -> tuple[Any, tuple[int, ...]]:
    """The name of the tokens and their places, from what stands on the command line."""
    try:
        return "positions", tuple(int(place) for place in text.split(","))
    except ValueError:
        return text, ()


def _scope(direction: Direction, tokens: str, at_site: bool, kernel: str | None) -> Scope:
    name, positions = _tokens(tokens)
    site = Site(direction.site.layer, direction.site.point) if at_site else None
    return Scope(
        site=site,
        tokens=name,
        offset=direction.place if name == "read" else 0,
        positions=positions,
        layers=None if kernel is None else _weights(kernel, direction.layout.n_layers),
    )


def _weights(kernel: str, n_layers: int) -> tuple[float, ...]:
    try:
        peak, position, half_width, edge = (float(number) for number in kernel.split(","))
        return triangular(n_layers, peak, position, half_width, edge)
    except ValueError as error:
        raise DataError(f"A kernel is PEAK,POSITION,HALF_WIDTH,EDGE, four numbers with a positive half-width, not {kernel!r}.") from error


def _held(to: str) -> Any:
    try:
        return float(to)
    except ValueError:
        return to
