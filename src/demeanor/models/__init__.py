"""Models: loading, layout with proof, capture, run-time edits and generation."""

from typing import TYPE_CHECKING

from ..deferred import attributes

if TYPE_CHECKING:
    from ..runtime.batches import Reply
    from ..runtime.capture import Activations
    from ..runtime.sites import Point, Site
    from ..structure.layout import Layout
    from .loading import load
    from .options import Loading, Quantized, SpreadLoading
    from .session import Session
    from .spread import SpreadSession
    from .streamed import StreamedSession, open_streamed

__getattr__, __dir__ = attributes(__name__, {
    "..runtime.batches": "Reply",
    "..runtime.capture": "Activations",
    "..runtime.sites": "Point Site",
    "..structure.layout": "Layout",
    ".loading": "load",
    ".options": "Loading Quantized SpreadLoading",
    ".session": "Session",
    ".spread": "SpreadSession",
    ".streamed": "StreamedSession open_streamed",
})  # fmt: skip

__all__ = ["Activations", "Layout", "Loading", "Point", "Quantized", "Reply", "Session", "Site", "SpreadLoading", "SpreadSession", "StreamedSession", "load", "open_streamed"]
