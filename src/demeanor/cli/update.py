"""`demeanor update`: more prompts for a direction that was found before."""

from __future__ import annotations

from ..controls import load_direction, save_direction
from ..controls.plan import DirectionPlan
from ..finding.plan import UpdatePlan
from ..finding.update import update as merge
from ..models import Loading
from ..models.plan import BehaviourPlan
from ..progress import say
from .from_model import from_plans
from .options import AsJson, print_json
from .outputs import Target
from .sessions import behaviour_named, opened
from .tables import update_table
from .terminal import out


@from_plans
def update(
    source: DirectionPlan, subject: BehaviourPlan, plan: UpdatePlan, loading: Loading, target: Target, as_json: AsJson = False
) -> None:
    """A direction with the prompts of a behaviour merged in, as if it had been found on all of them, and what drifted."""
    before, named = load_direction(source.direction), behaviour_named(subject.behaviour)
    updated = merge(opened(subject.model, loading), before, named, plan)
    save_direction(updated.direction, target)
    if as_json:
        print_json({"counts": updated.counts, "drift": [layer.to_json() for layer in updated.drift], "file": str(target)})
        return
    out.print(update_table(updated))
    kept = ", ".join(f"{name} {count['kept']} of {count['given']}" for name, count in updated.counts.items())
    direction = updated.direction
    say(
        f"{target}: {direction.estimator} at {direction.site}, {direction.shows.n} and {direction.lacks.n} prompts (new ones kept: {kept})."
    )
