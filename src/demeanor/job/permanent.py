"""Making permanent what acts at run time only: the chosen control distilled into an adapter, which can be baked."""

from __future__ import annotations

from pathlib import Path

from ..controls import Control, load_control
from ..models import Loading
from ..train import Prefix, prefix
from .plan import Plan

FOLDER = "permanent"


def distilled(plan: Plan, control: Control, named: Path, folder: Path) -> Control:
    """An adapter of the plan's model that does by itself what the control does, trained in `folder` unless it is there already.

    named: the file in which the control can be found afterwards. Raises CheckFailed where there is nothing to learn, DataError
    where the extra `train` is missing.
    """
    if not folder.exists():
        loading = {name: getattr(plan.here, name) for name in Loading.model_fields}
        recipe = Prefix(
            **loading, model=plan.model, behaviour=plan.behaviour, control=str(named), max_prompts=plan.max_prompts, prompts=plan.max_prompts
        )
        prefix(recipe, folder, control=control)
    return load_control(folder)
