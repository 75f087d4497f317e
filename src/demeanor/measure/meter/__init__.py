"""The meter: scores of replies counted honestly. Rates at thresholds, what could not be scored, and flows between models."""

from .aggregate import Aggregate, Comparison, aggregate, compare
from .flows import Flows, flows
from .table import ScoreTable, read_table

__all__ = ["Aggregate", "Comparison", "Flows", "ScoreTable", "aggregate", "compare", "flows", "read_table"]
