"""Measuring: rates, answers and drift, before and after, with intervals."""

from .bench import Bench, Trial
from .ledger import Ledger
from .measurement import Measurement, measure, measure_all
from .observation import Observation
from .suites import suite

__all__ = ["Bench", "Ledger", "Measurement", "Observation", "Trial", "measure", "measure_all", "suite"]
