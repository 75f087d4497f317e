"""`demeanor bake`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path

from ..controls import Control, load_control
from ..controls.files import CONTROL
from ..errors import DataError
from ..export import bake as bake_control
from ..export import merge
from ..runtime.adapters import ADAPTER
from .options import (
    AsJson,
    Controls,
    Model,
    Target,
    out,
    print_json,
)


def bake(model: Model, target: Target, control: Controls = None, as_json: AsJson = False) -> None:
    """Write a control into the weights, straight from the model's files; several are combined in the order given."""
    if not control:
        raise DataError("Baking needs a control; name its file with --control.")
    first = Path(control[0])
    if (first / ADAPTER).is_file() and not (first / CONTROL).is_file():  # made by another tool
        return _bake_adapter(model, control[0], control[1:], target, as_json)
    baked = bake_control(model, reduce(Control.then, map(load_control, control)), target)
    if as_json:
        print_json({**vars(baked), "folder": str(baked.folder), "left_out": list(baked.left_out)})
    else:
        out.print(str(baked), highlight=False, soft_wrap=True)


def _bake_adapter(model: str, adapter: str, rest: Sequence[str], target: Path, as_json: bool) -> None:
    """An adapter folder as a control: what it was trained to be is the model that further controls are baked into."""
    if rest:
        return bake(adapter, target, list(rest), as_json)
    folder = merge(model, adapter, target)
    if as_json:
        print_json({"folder": str(folder), "adapter": adapter})
    else:
        out.print(f"{folder}: the adapter {adapter} in the weights of {model}.", highlight=False, soft_wrap=True)
