"""`demeanor selfcontrol`: replies steered by what the model itself says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ..errors import CheckFailed
from ..io.atomic import new_folder
from ..io.plan import PLAN
from ..models import Loading
from ..progress import say
from ..selfcontrol import Settings, norms, outcome, preference_pairs, search, write_pairs, write_run
from ..selfcontrol.page import write_norms_page, write_selfcontrol_page
from ..selfcontrol.plan import AskingPlan, NormPromptsPlan, PromptsPlan, SteeringPlan, TrainPromptsPlan
from .from_model import from_plans
from .options import AsJson, help_alone, print_json
from .outputs import Output, Target, TargetFolder
from .sessions import opened
from .tables import norms_table, outcome_table
from .terminal import out

selfcontrol_app = typer.Typer(
    help="States under which the model, when asked, approves of its own reply; searched for each prompt.", callback=help_alone,
    invoke_without_command=True,
)  # fmt: skip
PATTERNS = 32  # prompts whose gradients make the pictures of a run
HeatMaps = Annotated[
    Optional[Path], typer.Option("-o", "--out", help="HTML file for heat maps of the norms.", show_default=False), Output("file")
]


@selfcontrol_app.command(
    "run", epilog="Example: demeanor selfcontrol run organism --behaviour over-refusal --max-prompts 20 -o runs/selfcontrol"
)
@from_plans
def selfcontrol_run(
    plan: SteeringPlan, source: PromptsPlan, settings: Settings, loading: Loading, target: TargetFolder, as_json: AsJson = False
) -> None:
    """The states of every prompt searched, as a control for these prompts, with all that was tried and a report."""
    named = plan.named()
    source.check(named)
    session = opened(plan.model, loading)
    behaviour = plan.steering(named, session)
    prompts = source.read(behaviour)
    traces = search(session, prompts, behaviour.questions, settings)
    if (remark := traces.remark(plan.model)) is not None:
        say(remark)
    result = outcome(session, traces, behaviour.detect)
    patterns = norms(session, prompts[:PATTERNS], {behaviour.name: behaviour.questions})
    tokens = [str(session.tokenizer.decode([token])) for token in traces.changed[0].ids] if traces.changed else None
    with new_folder(target) as folder:
        write_run(traces, result, session, folder)
        (folder / PLAN).write_text(plan.written(source, settings, loading), encoding="utf-8")
        write_selfcontrol_page(traces, result, f"{plan.model}: {behaviour.name}", folder / "report.html", patterns, tokens)
    if as_json:
        print_json({**result.to_json(), "prompts": len(traces.traces), "changed": len(traces.changed)})
        return
    title = f"{plan.model}, {behaviour.name}: {len(traces.changed)} of {len(traces.traces)} replies changed"
    out.print(outcome_table(result, title))
    say(f"{target}: report.html, control.safetensors. Then: demeanor chat {plan.model} --control {target / 'control.safetensors'}")


@selfcontrol_app.command("pairs", epilog="Example: demeanor selfcontrol pairs organism -q happiness --prompts emotions.json -o pairs.jsonl")
@from_plans
def selfcontrol_pairs(
    plan: SteeringPlan, source: TrainPromptsPlan, settings: Settings, loading: Loading, target: Target, as_json: AsJson = False
) -> None:
    """Preference pairs (prompt, chosen, rejected a line): steered towards what is wanted, and steered away."""
    named = plan.named()
    source.check(named)
    session = opened(plan.model, loading)
    behaviour = plan.steering(named, session)
    prompts = source.read(behaviour)
    pairs, _, _ = preference_pairs(session, prompts, behaviour.questions, settings)
    if not pairs:
        raise CheckFailed(f"None of {len(prompts)} prompts gave a pair: steered towards and away, each ended in the same reply.")
    write_pairs(pairs, session, target)
    if as_json:
        print_json({"pairs": len(pairs), "prompts": len(prompts)})
    else:
        say(f"{target}: {len(pairs)} pairs from {len(prompts)} prompts; the others ended in one reply both ways.")


@selfcontrol_app.command(
    "norms", epilog="Example: demeanor selfcontrol norms organism -q refusal -q happiness --prompts emotions.json -o norms.html"
)
@from_plans
def selfcontrol_norms(
    plan: AskingPlan, source: NormPromptsPlan, loading: Loading, target: HeatMaps = None, as_json: AsJson = False
) -> None:
    """Where each question's gradient is: its norm per layer, a column per question. Prompts come from a file or a behaviour."""
    named = plan.named()
    source.check(named[:1])
    session = opened(plan.model, loading)
    settled = [preset.settled(session) for preset in named]
    patterns = norms(session, source.read(settled[0]), {behaviour.name: behaviour.questions for behaviour in settled})
    if target is not None:
        write_norms_page(patterns, f"{plan.model}: gradient norms", target)
    if as_json:
        print_json({name: pattern.to_json() for name, pattern in patterns.items()})
        return
    out.print(norms_table(patterns))
