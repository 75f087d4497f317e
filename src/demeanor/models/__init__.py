"""Models: loading, layout with proof, capture, run-time edits and generation."""

from ..runtime.batches import Reply
from ..runtime.capture import Activations, Point, Site
from ..structure.layout import Layout
from .loading import load
from .options import Loading, Quantized, SpreadLoading
from .session import Session
from .spread import SpreadSession
from .streamed import StreamedSession, open_streamed

__all__ = ["Activations", "Layout", "Loading", "Point", "Quantized", "Reply", "Session", "Site", "SpreadLoading", "SpreadSession", "StreamedSession", "load", "open_streamed"]
