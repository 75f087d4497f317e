"""SelfControl: replies steered by what the model itself says of them. algorithms.md, section 9."""

from .search import search
from .settings import Settings
from .trace import Found, Step, Trace, Tried

__all__ = ["Found", "Settings", "Step", "Trace", "Tried", "search"]
