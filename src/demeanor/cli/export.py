"""`demeanor export`."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Annotated

import typer

from ..controls import Control, load_control
from ..export.gguf_files import ExportedAdapter, ExportedGguf, export_gguf, export_gguf_adapter, refuse_no_gguf, refuse_not_weights
from ..export.lora import Exported, export_lora, refuse_unexportable
from ..export.plan import ExportPlan
from ..export.vectors import ExportedVector, export_vector
from ..models import Loading
from .from_model import from_plans
from .options import AsJson, print_json
from .outputs import Output
from .sessions import opened
from .terminal import say_result

Written = Annotated[Path, typer.Option("-o", "--out", help="Folder, or file for llama.cpp, that the result is written to.", show_default=False), Output("folder", or_file=True)]


@from_plans
def export(plan: ExportPlan, loading: Loading, target: Written, as_json: AsJson = False) -> None:
    """A control in a form that other tools load: a LoRA adapter in PEFT's folder, or a file for llama.cpp (the whole model, a LoRA adapter or a control vector). Several are combined in the order given."""
    control = reduce(Control.then, map(load_control, plan.controls))
    result = _exported(plan, loading, control, target)
    if as_json:
        print_json({name: str(value) if isinstance(value, Path) else value for name, value in vars(result).items()})
    else:
        say_result(result)


def _exported(plan: ExportPlan, loading: Loading, control: Control, target: Path) -> Exported | ExportedVector | ExportedGguf | ExportedAdapter:
    """What cannot be written is told before the model is loaded, as far as it can be."""
    if plan.form == "gguf-vector":
        return export_vector(control, target)
    if plan.form == "lora":
        refuse_unexportable(control)
        return export_lora(opened(plan.model, loading), control, target)
    refuse_not_weights(control)
    refuse_no_gguf(plan.model)
    session = opened(plan.model, loading)
    return export_gguf(session, control, target, plan.edited_as) if plan.form == "gguf" else export_gguf_adapter(session, control, target)
