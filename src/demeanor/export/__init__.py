"""Baking: a control made permanent in a model's files."""

from .weights import Baked, bake, merge

__all__ = ["Baked", "bake", "merge"]
