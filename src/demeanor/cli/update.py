"""`demeanor update`: more prompts for a direction that was found before."""

from __future__ import annotations

from rich.table import Table

from ..controls import load_direction, save_direction
from ..finding.update import Updated
from ..finding.update import update as merge
from ..io.atomic import refuse_folder
from ..models.session import REPLY_TOKENS
from ..progress import say
from .options import (
    AsJson,
    BehaviourName,
    Device,
    DirectionFile,
    Dtype,
    In4bit,
    In8bit,
    MaxPrompts,
    Model,
    ReplyTokens,
    Target,
    behaviour_named,
    opened,
    out,
    print_json,
)


def update(
    direction: DirectionFile,
    model: Model,
    behaviour: BehaviourName,
    target: Target,
    device: Device = None,
    dtype: Dtype = None,
    in_4bit: In4bit = False,
    in_8bit: In8bit = False,
    reply_tokens: ReplyTokens = REPLY_TOKENS,
    max_prompts: MaxPrompts = None,
    as_json: AsJson = False,
) -> None:
    """Merge the prompts of a behaviour into a direction, as if it had been found on all of them, and tell what drifted."""
    refuse_folder(target)
    before, named = load_direction(direction), behaviour_named(behaviour)
    made = merge(opened(model, device, dtype, in_4bit, in_8bit, reply_tokens), before, named, max_prompts)
    save_direction(made.direction, target)
    if as_json:
        print_json({"counts": made.counts, "drift": [each.to_json() for each in made.drift], "file": str(target)})
        return
    out.print(_drift_table(made))
    kept = ", ".join(f"{name} {count['kept']} of {count['given']}" for name, count in made.counts.items())
    say(
        f"{target}: {made.direction.estimator} at {made.direction.site}, {made.direction.shows.n} and {made.direction.lacks.n} prompts (new ones kept: {kept})."
    )


def _drift_table(made: Updated) -> Table:
    table = Table(title="What the new prompts changed", title_justify="left")
    for heading in ("site", "cosine with before", "of the new alone", "shows moved", "lacks moved"):
        table.add_column(heading, justify="left" if heading == "site" else "right")
    for each in made.drift:
        here = each.site == made.direction.site
        cells = (f"{each.cosine:.4f}", f"{each.cosine_of_new:.4f}", f"{each.shows_moved:.3f}", f"{each.lacks_moved:.3f}")
        table.add_row(str(each.site), *cells, style="bold" if here else "")
    return table
