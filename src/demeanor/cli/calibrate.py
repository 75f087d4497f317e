"""`demeanor dial` and `demeanor dose`: how much of a control."""

from __future__ import annotations

from ..calibrate.dial import dial as turn_dial
from ..calibrate.dial import doses
from ..calibrate.dose import find_dose
from ..calibrate.plan import DialPlan, DosePlan
from ..controls import load_control, save_control
from ..controls.plan import ControlPlan
from ..finding.find import search_directions
from ..models import SpreadLoading
from ..models.plan import BehaviourPlan
from ..progress import say
from .from_model import from_plans
from .options import AsJson, print_json
from .outputs import Target
from .sessions import behaviour_named, opened
from .tables import dial_table, doses_table, measurement_table
from .terminal import out, say_result


@from_plans
def dial(subject: BehaviourPlan, plan: DialPlan, loading: SpreadLoading, target: Target, as_json: AsJson = False) -> None:
    """A dial that turns a behaviour from removed (-1) to induced (+1), measured at every dose; used as FILE:DOSE."""
    named = behaviour_named(subject.behaviour)
    named.needs_prompts()
    session = opened(subject.model, loading)
    behaviour = named.settled(session)
    findings = search_directions(session, behaviour, layer=plan.layer, max_prompts=plan.max_prompts)
    turned = turn_dial(session, behaviour, findings, doses(plan.doses), plan.max_prompts)
    save_control(turned.control, target)
    if as_json:
        print_json(turned.to_json())
        return
    out.print(dial_table(turned, f"{behaviour.name} in {subject.model}: test split, {turned.direction.site}"))
    say_result(f"{turned.verdict()}\nUse it as {target}:DOSE, such as --control {target}:-0.5.")


@from_plans
def dose(subject: BehaviourPlan, dosed: ControlPlan, plan: DosePlan, loading: SpreadLoading, target: Target, as_json: AsJson = False) -> None:
    """The smallest dose of a control that reaches a rate (on val), measured once (on test) and written."""
    named, control = behaviour_named(subject.behaviour), load_control(dosed.control)
    found = find_dose(opened(subject.model, loading), named, control, plan)
    save_control(found.control, target)
    if as_json:
        print_json(found.to_json())
        return
    out.print(doses_table(found))
    out.print(measurement_table(found.measurement, f"{named.name} in {subject.model}: test split, dose {found.dose:g}"))
    say_result(found)
    say(f"{target}: {found.control}.")
