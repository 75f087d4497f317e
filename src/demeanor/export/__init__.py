"""A control made permanent in a model's files, or written beside them in a form that other tools load; and what was made, put on the Hub."""

from .gguf_files import ExportedAdapter, ExportedGguf, export_gguf, export_gguf_adapter
from .hub import Pushed, push
from .lora import Exported, export_lora
from .vectors import ExportedVector, export_vector
from .weights import Baked, bake, merge

__all__ = [
    "Baked", "Exported", "ExportedAdapter", "ExportedGguf", "ExportedVector", "Pushed", "bake", "export_gguf", "export_gguf_adapter", "export_lora", "export_vector",
    "merge", "push",
]  # fmt: skip
