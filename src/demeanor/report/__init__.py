"""What a person reads after a run: the table on the terminal, the HTML page, and its pictures."""

from .page import write_report
from .selfcontrol import norm_heat_map, score_per_iteration, token_heat_map, trajectories
from .table import measurement_table, run_table, scores_table

__all__ = [
    "measurement_table", "norm_heat_map", "run_table", "score_per_iteration", "scores_table", "token_heat_map", "trajectories",
    "write_report",
]  # fmt: skip
