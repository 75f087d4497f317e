"""What a person reads after a run: the table on the terminal and the HTML page."""

from .page import write_report
from .table import measurement_table, run_table, scores_table

__all__ = ["measurement_table", "run_table", "scores_table", "write_report"]
