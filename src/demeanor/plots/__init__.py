"""Figures of results, for notebooks: one verb, `plot`, that knows every noun that can be drawn."""

from .views import plot

__all__ = ["plot"]
