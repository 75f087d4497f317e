"""demeanor: find, change and measure the behaviours of open-weight language models.

import demeanor as dm
s = dm.load("organism"); b = dm.behaviour("over-refusal")
c = dm.ablate(dm.find(s, b)).when(dm.gate(s, b, false_positives=0.05))
print(dm.measure(s, b, control=c))

What it holds is imported when it is first used, so that `import demeanor` and the command line begin at once.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .deferred import attributes
from .errors import DemeanorError, NoCandidate, NoUsableDirection
from .version import __version__

if TYPE_CHECKING:
    from . import selfcontrol as selfcontrol
    from . import train as train
    from .audit import Audit, audit
    from .behaviours import Behaviour, Prompt, behaviour
    from .calibrate.dose import find_dose
    from .calibrate.plan import DosePlan
    from .controls import (  # fmt: skip
        Control,
        Direction,
        Gate,
        Scope,
        ablate,
        add,
        clamp,
        load_control,
        load_direction,
        rotate,
        save_control,
        save_direction,
        scale,
    )
    from .export import bake, export_gguf, export_gguf_adapter, export_lora, export_vector, push
    from .finding.find import find
    from .finding.gates import gate
    from .finding.plan import FindPlan, GatePlan
    from .finding.selective import selective
    from .job.plan import Plan
    from .job.run import run
    from .measure import Measurement, measure
    from .measure.plan import MeasurePlan
    from .models import Loading, Session, Site, StreamedSession, load, open_streamed
    from .plots import plot
    from .search.plan import SearchPlan
    from .search.searching import search
    from .stats.score import Score

_WINGS = ("selfcontrol", "train")
_HOMES = {
    ".audit": "Audit audit",
    ".behaviours": "Behaviour Prompt behaviour",
    ".calibrate.dose": "find_dose",
    ".calibrate.plan": "DosePlan",
    ".controls": "Control Direction Gate Scope ablate add clamp load_control load_direction rotate save_control save_direction scale",
    ".export": "bake export_gguf export_gguf_adapter export_lora export_vector push",
    ".finding.find": "find",
    ".finding.gates": "gate",
    ".finding.selective": "selective",
    ".finding.plan": "FindPlan GatePlan",
    ".job.plan": "Plan",
    ".job.run": "run",
    ".measure": "Measurement measure",
    ".measure.plan": "MeasurePlan",
    ".models": "Loading Session Site StreamedSession load open_streamed",
    ".plots": "plot",
    ".search.plan": "SearchPlan",
    ".search.searching": "search",
    ".stats.score": "Score",
}  # fmt: skip
_NAMES = frozenset(name for names in _HOMES.values() for name in names.split())
_named, _ = attributes(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    if name in _WINGS:
        return import_module(f".{name}", __name__)
    value = _named(name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """This package: a wing that is imported does not hide the verb of the same name (`measure`)."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _NAMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

__all__ = [
    "Audit", "Behaviour", "Control", "DemeanorError", "Direction", "DosePlan", "FindPlan", "Gate", "GatePlan", "Loading", "MeasurePlan", "Measurement",
    "NoCandidate", "NoUsableDirection", "Plan", "Prompt", "Scope", "Score", "SearchPlan", "Session", "Site", "StreamedSession", "__version__", "ablate", "add", "audit", "bake", "behaviour", "clamp", "export_gguf", "export_gguf_adapter", "export_lora", "export_vector", "find", "find_dose", "gate", "load",
    "load_control", "load_direction", "measure", "open_streamed", "plot", "push", "rotate", "run", "save_control", "save_direction", "scale", "search", "selective", "selfcontrol", "train",
]  # fmt: skip
