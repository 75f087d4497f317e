"""Measuring: rates, answers and drift, before and after, with intervals."""

from .measurement import Measurement, measure, measure_all
from .observation import Observation, observe
from .suites import suite

__all__ = ["Measurement", "Observation", "measure", "measure_all", "observe", "suite"]
