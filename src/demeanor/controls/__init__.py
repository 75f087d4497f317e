"""Controls, gates, scopes and their files."""

from .constructors import ablate, add, clamp, rotate, scale
from .control import Control
from .direction import Candidate, Direction, Estimator, Round, load_direction, save_direction
from .files import load_control, save_control
from .gate import Gate, gate
from .part import Part
from .scope import Scope

__all__ = [
    "Candidate", "Control", "Direction", "Estimator", "Gate", "Part", "Round", "Scope", "ablate", "add", "clamp", "gate",
    "load_control", "load_direction", "rotate", "save_control", "save_direction", "scale",
]  # fmt: skip
