"""`demeanor inspect`."""

from __future__ import annotations

from .options import (
    AsJson,
    Device,
    Dtype,
    In4bit,
    In8bit,
    Model,
    opened,
    out,
    print_json,
)
from .tables import layout_table


def inspect(
    model: Model, device: Device = None, dtype: Dtype = None, in_4bit: In4bit = False, in_8bit: In8bit = False, as_json: AsJson = False
) -> None:
    """Prove what writes to the residual stream of a model, on a forward pass."""
    layout = opened(model, device, dtype, in_4bit, in_8bit).layout
    if as_json:
        print_json({**layout.to_json(), "hash": layout.hash})
        return
    out.print(layout_table(layout, f"{model}: {layout.model_type}, {layout.n_layers} layers, d_model {layout.d_model}"))
    tied = f"; output head tied to {layout.tied[0]}" if layout.tied else ""
    out.print(
        f"Every block accounted for (worst residual {layout.worst_residual:.0e}), ablation proven; structure {layout.hash}{tied}.",
        highlight=False,
    )
