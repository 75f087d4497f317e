"""Models: loading, layout with proof, capture, run-time edits and generation."""

from .capture import Activations, Point, Site
from .generate import Reply
from .layout import Layout
from .loading import load
from .session import Session

__all__ = ["Activations", "Layout", "Point", "Reply", "Session", "Site", "load"]
