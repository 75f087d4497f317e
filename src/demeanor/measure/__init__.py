"""Measuring: rates, answers and drift, before and after, with intervals."""

from .measurement import Measurement, measure
from .observation import Observation, observe

__all__ = ["Measurement", "Observation", "measure", "observe"]
