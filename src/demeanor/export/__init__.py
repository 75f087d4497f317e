"""Baking: a control made permanent in a model's files."""

from .lora import Exported, export_lora
from .weights import Baked, bake, merge

__all__ = ["Baked", "Exported", "bake", "export_lora", "merge"]
