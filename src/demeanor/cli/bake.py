"""`demeanor bake`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path

from ..controls import Control
from ..controls.files import CONTROL, load_for_files
from ..errors import DataError
from ..export import bake as bake_control
from ..export import merge
from ..export.plan import BakePlan
from ..models import Loading
from ..runtime.adapter import ADAPTER
from .from_model import from_plans
from .options import AsJson, print_json
from .outputs import TargetFolder
from .terminal import say_result

CHANGES_WEIGHTS = ("dtype", "load_in_4bit", "load_in_8bit")


@from_plans
def bake(plan: BakePlan, loading: Loading, target: TargetFolder, as_json: AsJson = False) -> None:
    """A control in the weights, written straight into the model's files; several are combined in the order given."""
    changed = next((name for name in CHANGES_WEIGHTS if getattr(loading, name)), None)
    if changed is not None:
        raise DataError(f"The weights are written as they are stored; leave out --{changed.replace('_', '-')}.")
    first, *rest = plan.controls
    if not _is_foreign_adapter(Path(first)):
        _baked(plan, plan.model, plan.controls, target, loading, as_json)
    elif rest:  # what an adapter was trained to be is the model that further controls are baked into
        _baked(plan, first, rest, target, loading, as_json)
    else:
        if plan.keep_norms:
            raise DataError(f"{first} is an adapter of another tool, which is merged as it is; leave --keep-norms out.")
        folder = merge(plan.model, first, target, loading.trust_remote_code)
        sentence = f"{folder}: the adapter {first} in the weights of {plan.model}."
        print_json({"folder": str(folder), "adapter": first}) if as_json else say_result(sentence)


def _is_foreign_adapter(folder: Path) -> bool:
    """Whether a control is an adapter folder that another tool made."""
    return (folder / ADAPTER).is_file() and not (folder / CONTROL).is_file()


def _baked(plan: BakePlan, model: str, controls: Sequence[str], target: Path, loading: Loading, as_json: bool) -> None:
    control = reduce(Control.then, map(load_for_files, controls))
    baked = bake_control(model, control, target, loading.trust_remote_code, plan.copy_all, loading if plan.verify else None, plan.keep_norms)
    if as_json:
        print_json({**vars(baked), "folder": str(baked.folder), "left_out": list(baked.left_out), "unused": list(baked.unused), "verified": baked.verified and vars(baked.verified)})
    else:
        say_result(baked)
