"""Scores with intervals, and tests of change."""
