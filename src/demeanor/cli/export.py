"""`demeanor export`."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Annotated

import typer

from ..controls import Control, load_control
from ..export.lora import export_lora, refuse_unexportable
from ..export.plan import ExportPlan
from ..export.vectors import export_vector
from ..models import Loading
from .from_model import from_plans
from .options import AsJson, opened, print_json
from .outputs import Output
from .terminal import say_result

Written = Annotated[Path, typer.Option("-o", "--out", help="Folder, or file of a control vector, that the result is written to.", show_default=False), Output("folder")]


@from_plans
def export(plan: ExportPlan, loading: Loading, target: Written, as_json: AsJson = False) -> None:
    """A control in a form that other tools load, beside a model's weights: a LoRA adapter in PEFT's folder, or a control vector of llama.cpp. Several are combined in the order given."""
    control = reduce(Control.then, map(load_control, plan.controls))
    if plan.form == "gguf-vector":
        vector = export_vector(control, target)
        print_json({"file": str(vector.file), "layers": vector.layers}) if as_json else say_result(vector)
        return
    refuse_unexportable(control)  # before the model is loaded
    written = export_lora(opened(plan.model, loading), control, target)
    if as_json:
        print_json({**vars(written), "folder": str(written.folder)})
    else:
        say_result(written)
