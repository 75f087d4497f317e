"""Models: loading, layout with proof, capture, run-time edits and generation."""

from ..runtime.batches import Reply
from ..runtime.capture import Activations, Point, Site
from ..structure.layout import Layout
from .loading import load
from .options import Loading, Quantized
from .session import Session
from .streamed import StreamedSession, open_streamed

__all__ = ["Activations", "Layout", "Loading", "Point", "Quantized", "Reply", "Session", "Site", "StreamedSession", "load", "open_streamed"]
