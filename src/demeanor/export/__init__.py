"""A control made permanent in a model's files, or written beside them in a form that other tools load; and what was made, put on the Hub."""

from typing import TYPE_CHECKING

from ..deferred import attributes

if TYPE_CHECKING:
    from .gguf_files import ExportedAdapter, ExportedGguf, export_gguf, export_gguf_adapter
    from .hub import Pushed, push
    from .lora import Exported, export_lora
    from .vectors import ExportedVector, export_vector
    from .weights import Baked, bake, merge

__getattr__, __dir__ = attributes(__name__, {
    ".gguf_files": "ExportedAdapter ExportedGguf export_gguf export_gguf_adapter",
    ".hub": "Pushed push",
    ".lora": "Exported export_lora",
    ".vectors": "ExportedVector export_vector",
    ".weights": "Baked bake merge",
})  # fmt: skip

__all__ = [
    "Baked", "Exported", "ExportedAdapter", "ExportedGguf", "ExportedVector", "Pushed", "bake", "export_gguf", "export_gguf_adapter", "export_lora", "export_vector",
    "merge", "push",
]  # fmt: skip
