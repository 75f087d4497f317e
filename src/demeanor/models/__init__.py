"""Models: loading, layout with proof, capture, run-time edits and generation."""

from .capture import Activations, Point, Site
from .generate import Reply
from .layout import Layout
from .session import Session, load

__all__ = ["Activations", "Layout", "Point", "Reply", "Session", "Site", "load"]
