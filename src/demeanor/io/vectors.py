"""Control vectors as llama.cpp reads them: a GGUF file with a vector for each of some layers, `direction.K`, added to what block K returns (from 0) at every token.

llama.cpp knows none for block 0, and sums those of several files. repeng and others write the same form.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .atomic import new_file
from .gguf import ARCHITECTURE, open_gguf
from .gguf_writing import refuse_without_package, write_out

KIND = "controlvector"
NAME = "direction."


def write_vectors(path: Path, vectors: Mapping[int, Tensor], model_type: str) -> None:
    """Vectors [d_model] by the number of their block, 1 or more, as float32; `model_type` is a hint, which llama.cpp does not read."""
    refuse_without_package()
    from gguf import GGUFWriter

    with new_file(path) as work:
        writer = GGUFWriter(work, KIND)
        writer.add_string(f"{KIND}.model_hint", model_type)
        writer.add_uint32(f"{KIND}.layer_count", len(vectors))
        for layer, vector in sorted(vectors.items()):
            writer.add_tensor(f"{NAME}{layer}", vector.detach().float().cpu().contiguous().numpy())
        write_out(writer)


def read_vectors(path: Path) -> dict[int, Tensor]:
    """Vectors [d_model], float32, by the number of their block. DataError for another GGUF file and for vectors that llama.cpp would refuse."""
    file = open_gguf(path)
    if file.values[ARCHITECTURE] != KIND:
        raise DataError(f"{path} is a GGUF file of a {file.architecture} model, not a control vector ({KIND}).")
    vectors: dict[int, Tensor] = {}
    for name, stored in file.tensors.items():
        number = name.removeprefix(NAME)
        if not name.startswith(NAME) or not number.isdecimal() or int(number) == 0:
            raise DataError(f"{path} holds {name[:80]!r}, and a control vector holds {NAME}1 and on; make it anew.")
        if stored.dtype != "F32" or len(stored.shape) != 1:
            raise DataError(f"{name} in {path} is {stored.dtype} {list(stored.shape)}, not one vector of F32; make it anew.")
        vector = torch.from_numpy(np.fromfile(path, dtype="<f4", count=stored.shape[0], offset=stored.start))
        if not vector.isfinite().all():
            raise DataError(f"{name} in {path} holds what is no number; make it anew.")
        vectors[int(number)] = vector
    if not vectors:
        raise DataError(f"{path} holds no vector ({NAME}1 and on); make it anew.")
    return vectors
