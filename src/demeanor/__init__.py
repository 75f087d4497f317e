"""demeanor: find, change and measure the behaviours of open-weight language models.

import demeanor as dm
s = dm.load("organism"); b = dm.behaviour("over-refusal")
c = dm.ablate(dm.find(s, b)).when(dm.gate(s, b, false_positives=0.05))
print(dm.measure(s, b, control=c))
"""

from . import report, select, selfcontrol, train
from .bake import bake
from .behaviours import Behaviour, Prompt, behaviour
from .controls import (
    Control,
    Direction,
    Gate,
    Scope,
    ablate,
    add,
    clamp,
    gate,
    load_control,
    load_direction,
    rotate,
    save_control,
    save_direction,
    scale,
)  # fmt: skip
from .dose import find_dose
from .errors import DemeanorError, NoCandidate, NoUsableDirection
from .find import find
from .job import run
from .measure import Measurement, measure
from .models import Session, Site, load
from .runs import Plan
from .score import Score
from .version import __version__

__all__ = [
    "Behaviour", "Control", "DemeanorError", "Direction", "Gate", "Measurement", "NoCandidate", "NoUsableDirection", "Plan", "Prompt",
    "Scope", "Score", "Session", "Site", "__version__", "ablate", "add", "bake", "behaviour", "clamp", "find", "find_dose", "gate", "load",
    "load_control", "load_direction", "measure", "report", "rotate", "run", "save_control", "save_direction", "scale", "select", "selfcontrol", "train",
]  # fmt: skip
