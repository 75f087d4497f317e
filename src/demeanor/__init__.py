"""demeanor: find, change and measure the behaviours of open-weight language models.

import demeanor as dm
s = dm.load("organism"); b = dm.behaviour("over-refusal")
c = dm.ablate(dm.find(s, b)).when(dm.gate(s, b, false_positives=0.05))
print(dm.measure(s, b, control=c))
"""

from . import selfcontrol, train
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
from .errors import DemeanorError, NoCandidate, NoUsableDirection
from .export import bake
from .finding.find import find
from .finding.gates import gate
from .finding.plan import FindPlan, GatePlan
from .job.plan import Plan
from .job.run import run
from .measure import Measurement, measure
from .measure.plan import MeasurePlan
from .models import Loading, Session, Site, load
from .stats.score import Score
from .version import __version__

__all__ = [
    "Behaviour", "Control", "DemeanorError", "Direction", "DosePlan", "FindPlan", "Gate", "GatePlan", "Loading", "MeasurePlan", "Measurement",
    "NoCandidate", "NoUsableDirection", "Plan", "Prompt", "Scope", "Score", "Session", "Site", "__version__", "ablate", "add", "bake", "behaviour", "clamp", "find", "find_dose", "gate", "load",
    "load_control", "load_direction", "measure", "rotate", "run", "save_control", "save_direction", "scale", "selfcontrol", "train",
]  # fmt: skip
