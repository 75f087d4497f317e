"""The meter: scores of replies counted honestly. Rates at thresholds, what could not be scored, and flows between models."""

from .aggregates import Aggregate, Comparison, aggregate, compare
from .table import ScoreTable, read_table
from .transitions import Flows, flows

__all__ = ["Aggregate", "Comparison", "Flows", "ScoreTable", "aggregate", "compare", "flows", "read_table"]
