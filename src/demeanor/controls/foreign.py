"""What other tools made: a mean difference in a .pt file, or an adapter in a folder of PEFT's, becomes a control."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from ..algebra.directions import unit
from ..errors import ControlError, DataError
from ..io.claims import refuse_output
from ..io.tensors import FLOATS
from ..models import Layout
from ..runtime.adapters import ADAPTER, read_peft
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
    if not plain or content.dtype not in FLOATS or content.squeeze().dim() != 1:
        size = "" if content.is_nested else f" {list(content.shape)}"
        raise DataError(f"{path} holds a tensor{size} of {content.dtype}, not one direction [d_model]; save that of one layer alone.")
    vector = content.detach().squeeze().double()
    if not vector.isfinite().all() or not vector.any():
        raise DataError(f"The direction in {path} is zero or holds what is no number; make it anew.")
    return vector


def convert(path: str | Path, layout: Layout, model_name: str, strength: float = 1.0) -> Control:
    """The ablation of a foreign direction at every writer of a model with this layout; or an adapter folder, `strength` of it.

    Raises DataError for a file without one direction, ControlError for one of another size and for an adapter that is no control.
    """
    if (Path(path) / ADAPTER).is_file():
        made_from = provenance(method="adapter", behaviour=f"the adapter {Path(path).name}")
        return Control(
            parts=(), layout=layout, model_name=model_name, made_from=made_from, adapters=(read_peft(Path(path)).scaled(strength),)
        )
    vector = read_foreign(path)
    if len(vector) != layout.d_model:
        raise ControlError(
            f"The direction in {path} has {len(vector)} channels, and {model_name} has {layout.d_model}; it was made for another model."
        )
    part = Part(kind="ablate", vectors=unit(vector / vector.abs().max()).float()[None], dose=strength, scope=Scope())
    made_from = provenance(method="ablate", behaviour=f"the direction of {Path(path).name}", length=float(vector.norm()))
    return Control(parts=(part,), layout=layout, model_name=model_name, made_from=made_from)
