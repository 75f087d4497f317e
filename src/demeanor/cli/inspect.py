"""`demeanor inspect`."""

from __future__ import annotations

from ..models import Loading
from ..models.plan import ModelPlan
from .from_model import from_plans
from .options import AsJson, print_json
from .sessions import opened
from .tables import layout_table
from .terminal import out, say_result


@from_plans
def inspect(plan: ModelPlan, loading: Loading, as_json: AsJson = False) -> None:
    """What writes to the residual stream of a model, proven on a forward pass."""
    session = opened(plan.model, loading)
    layout = session.layout
    if as_json:
        print_json({**layout.to_json(), "hash": layout.hash})
        return
    out.print(layout_table(layout, f"{plan.model}: {layout.model_type}, {layout.n_layers} layers, d_model {layout.d_model}"))
    tied = f"; output head tied to {layout.tied[0]}" if layout.tied else ""
    say_result(
        f"Every block accounted for (worst residual {layout.worst_residual:.0e}), ablation tried; {session.proof}, {layout.hash}{tied}."
    )
