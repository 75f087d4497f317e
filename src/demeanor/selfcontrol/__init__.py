"""SelfControl: replies steered by what the model itself says of them. algorithms.md, section 8."""

from .gradient import NormPattern
from .norm_patterns import norms
from .outcomes import Outcome, outcome, scores, write_run
from .page import norm_heat_map, score_per_iteration, token_heat_map, trajectories
from .pairs import Pair, preference_pairs, write_pairs
from .searching import search
from .settings import Settings
from .trace import Step, Trace, Traces, Tried

__all__ = [
    "Traces", "NormPattern", "Outcome", "Pair", "Settings", "Step", "Trace", "Tried", "norm_heat_map", "norms", "outcome", "preference_pairs", "score_per_iteration", "scores", "search", "token_heat_map", "trajectories",
    "write_pairs", "write_run",
]  # fmt: skip
