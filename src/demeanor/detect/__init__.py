"""Detectors: text in, probability that a behaviour is present out."""

from . import classifier, judge, lexicon, matches, openings, suffix  # each registers its detector
from .registry import DETECTORS, Detector, NamedDetector, check_detector, detector, likely, make_detector, present

__all__ = ["DETECTORS", "Detector", "NamedDetector", "check_detector", "detector", "likely", "make_detector", "present"]
_ = classifier, judge, lexicon, matches, openings, suffix
