"""Capability by lm-eval: its tasks by name, with the session, and whatever controls are in force, as the model."""

from .names import NAMED
from .run import compare_suites, headlines, run_suite, suite
from .scores import Change, TaskScore
from .tasks import Suite, load_suites

__all__ = ["NAMED", "Change", "Suite", "TaskScore", "compare_suites", "headlines", "load_suites", "run_suite", "suite"]
