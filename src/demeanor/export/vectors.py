"""A control that adds to the stream as a control vector of llama.cpp, in a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..controls import Control
from ..controls.part import Part
from ..errors import ControlError
from ..io.vectors import write_vectors
from ..runtime.control_like import as_control


@dataclass(frozen=True)
class ExportedVector:
    """What was written: the file, and the layers behind which something is added."""

    file: Path
    layers: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.file}: a control vector of llama.cpp, added behind the layers {', '.join(map(str, self.layers))} (--control-vector {self.file})."


def export_vector(control: Control, path: str | Path) -> ExportedVector:
    """Write a control as a control vector of llama.cpp, the new file `path`: at dose 1 (--control-vector) it adds what the control adds.

    Of a control that does anything but add to the stream between layers, at every token of every request, llama.cpp has no form: it is refused
    with a ControlError, as is what acts before or in layer 0.
    """
    vectors = vectors_of(as_control(control))
    write_vectors(Path(path), vectors, control.layout.model_type)
    return ExportedVector(Path(path), tuple(sorted(vectors)))


def vectors_of(control: Control) -> dict[int, Tensor]:
    """What is added to the output of each block [d_model]; see `export_vector`."""
    if control.adapters or control.states:
        raise ControlError("A control vector of llama.cpp holds no adapter and no states of single prompts; export the control as lora, or bake it.")
    vectors: dict[int, Tensor] = {}
    for part in control.parts:
        layer = _block(part, control)
        moved = part.vectors[0] * part.dose
        vectors[layer] = vectors[layer] + moved if layer in vectors else moved
    if not vectors:
        raise ControlError("The control does nothing, so there is no vector to write.")
    return vectors


def _block(part: Part, control: Control) -> int:
    """The block to whose output a part adds."""
    if part.kind != "add":
        raise ControlError(f"llama.cpp adds vectors and does not {part.kind}; bake the control, or export it as lora.")
    if part.gates:
        raise ControlError("llama.cpp adds a vector to every request, and this control is gated; take the control without its gate.")
    if part.scope.tokens != "all":
        raise ControlError(f"llama.cpp adds a vector at every token, and this control acts on {part.scope.tokens}; make it with --tokens all.")
    site = part.scope.site
    assert site is not None  # parts that add have one
    layer = {"resid_post": site.layer, "resid_pre": site.layer - 1}.get(site.point)
    if layer is None or control.layout.copies > 1:
        raise ControlError(f"llama.cpp adds a vector between layers, and this control acts at {site}; use a direction of resid_post.")
    if layer < 1:
        raise ControlError(f"llama.cpp knows no vector before layer 1, and this control acts at {site}; use a direction of a later layer.")
    return layer
