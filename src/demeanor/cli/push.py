"""`demeanor push`."""

from __future__ import annotations

from ..export.hub import push as pushed
from ..export.plan import PushPlan
from .from_model import from_plans
from .options import AsJson, print_json
from .terminal import say_result


@from_plans
def push(plan: PushPlan, as_json: AsJson = False) -> None:
    """A control, an adapter or an edited model put on the Hub, with a card that says what it does and what it keeps. A new repository is private unless --public."""
    done = pushed(plan.place, plan.repo, public=plan.public, revision=plan.revision)
    if as_json:
        print_json(vars(done))
    else:
        say_result(done)
