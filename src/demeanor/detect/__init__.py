"""Detectors: text in, probability that a behaviour is present out."""

from . import openings as _openings  # registers "refusal"
from .detector import Detector, detector, make_detector, present

__all__ = ["Detector", "detector", "make_detector", "present"]
_ = _openings
