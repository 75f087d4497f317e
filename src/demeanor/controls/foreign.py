"""What other tools made becomes a control: a mean difference in a .pt file, a control vector of llama.cpp, or an adapter in a folder of PEFT's."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from ..algebra.bases import unit
from ..arrays import dtype_name
from ..errors import ControlError, DataError
from ..io.claims import refuse_output
from ..io.gguf import is_gguf
from ..io.tensors import FLOATS
from ..io.vectors import read_vectors
from ..models import Layout, Site
from ..runtime.adapter import ADAPTER
from ..runtime.adapters import read_peft
from .control import Control, provenance
from .part import Part
from .scope import Scope


def read_foreign(path: str | Path) -> Tensor:
    """The vector [d_model] in a .pt file, float64. Nothing in the file is executed. Raises DataError for anything but one vector."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no file {str(path)!r}.")
    refuse_output(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} is no .pt file of plain tensors, so it is not opened; save the direction alone, with torch.save."
        ) from error
    except (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError, ImportError, OSError, MemoryError) as error:
        raise DataError(f"{path} is not a complete .pt file ({' '.join(str(error).split())[:80]}); save it again.") from error
    if not isinstance(content, Tensor):
        raise DataError(f"{path} holds a {type(content).__name__}, not one tensor; save the direction of one layer alone.")
    plain = content.layout == torch.strided and not (content.is_nested or content.is_quantized or content.is_meta)
    if not plain or dtype_name(content) not in FLOATS or content.squeeze().dim() != 1:
        size = "" if content.is_nested else f" {list(content.shape)}"
        raise DataError(f"{path} holds a tensor{size} of {content.dtype}, not one direction [d_model]; save that of one layer alone.")
    vector = content.detach().squeeze().double()
    if not vector.isfinite().all() or not vector.any():
        raise DataError(f"The direction in {path} is zero or holds what is no number; make it anew.")
    return vector


def convert(path: str | Path, layout: Layout, model_name: str, strength: float = 1.0) -> Control:
    """The ablation of a foreign direction at every writer of a model with this layout; or a control vector or an adapter folder, `strength` of it.

    Raises DataError for a file without a direction, ControlError for one of another size and for an adapter that is no control.
    """
    if (Path(path) / ADAPTER).is_file():
        made_from = provenance(method="adapter", behaviour=f"the adapter {Path(path).name}")
        return Control(
            parts=(), layout=layout, model_name=model_name, made_from=made_from, adapters=(read_peft(Path(path)).scaled(strength),)
        )
    if is_gguf(Path(path)):
        return _of_vectors(Path(path), layout, model_name, strength)
    vector = read_foreign(path)
    if len(vector) != layout.d_model:
        raise ControlError(
            f"The direction in {path} has {len(vector)} channels, and {model_name} has {layout.d_model}; it was made for another model."
        )
    part = Part(kind="ablate", vectors=unit(vector / vector.abs().max()).float()[None], dose=strength, scope=Scope())
    made_from = provenance(method="ablate", behaviour=f"the direction of {Path(path).name}", length=float(vector.norm()))
    return Control(parts=(part,), layout=layout, model_name=model_name, made_from=made_from)


def _of_vectors(path: Path, layout: Layout, model_name: str, strength: float) -> Control:
    """What llama.cpp does with a control vector: it is added behind its layers, at every token."""
    vectors = read_vectors(path)
    size, last = {len(vector) for vector in vectors.values()}, max(vectors)
    if size != {layout.d_model} or last >= layout.n_layers:
        raise ControlError(
            f"The control vector in {path} has {', '.join(map(str, sorted(size)))} channels and goes to layer {last}; {model_name} has {layout.d_model}, and layers 0 to {layout.n_layers - 1}."
        )
    parts = tuple(
        Part(kind="add", vectors=vector[None], dose=strength, scope=Scope(site=Site(layer), tokens="all")) for layer, vector in sorted(vectors.items())
    )
    made_from = provenance(method="add", behaviour=f"the control vector {path.name}")
    return Control(parts=parts, layout=layout, model_name=model_name, made_from=made_from)
