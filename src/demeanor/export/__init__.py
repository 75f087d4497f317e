"""A control made permanent in a model's files, or written beside them in a form that other tools load."""

from .lora import Exported, export_lora
from .weights import Baked, bake, merge

__all__ = ["Baked", "Exported", "bake", "export_lora", "merge"]
