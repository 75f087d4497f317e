"""`demeanor export`."""

from __future__ import annotations

from functools import reduce

from ..controls import Control, load_control
from ..export.lora import export_lora, refuse_unexportable
from ..export.plan import ExportPlan
from ..models import Loading
from .from_model import from_plans
from .options import AsJson, opened, print_json
from .outputs import TargetFolder
from .terminal import say_result


@from_plans
def export(plan: ExportPlan, loading: Loading, target: TargetFolder, as_json: AsJson = False) -> None:
    """A control in a form that other tools load, beside a model's weights: a LoRA adapter in PEFT's folder. Several are combined in the order given."""
    control = reduce(Control.then, map(load_control, plan.controls))
    refuse_unexportable(control)  # before the model is loaded
    written = export_lora(opened(plan.model, loading), control, target)
    if as_json:
        print_json({**vars(written), "folder": str(written.folder)})
    else:
        say_result(written)
