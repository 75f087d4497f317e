"""Edited tensors of GGUF files in blocks of Q8_0: 32 whole numbers of 8 bits behind a scale in float16."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..algebra.rounding import Grid
from .packed import rounded
from .patch import PutBack

BLOCK = 32  # weights
LEVELS = torch.arange(-127.0, 128)  # those that llama.cpp's own quantiser uses
AT_ONCE = 1 << 22  # weights


def packed_q8_0(before: Tensor, exact: Tensor, basis: Tensor, outputs_first: bool) -> tuple[np.ndarray[Any, Any], PutBack]:
    """Blocks of Q8_0 (uint8, the last axis in bytes) with values near `exact` that have next to no error along basis [k, out], and what rounding did there.

    before, exact: the tensor as it was and as it is to be, float32 [out, in], or [in, out] where not `outputs_first`, or a stack of such. Every scale is made
    anew, as llama.cpp's quantiser makes it: an edit takes some values over the end of the old ones.
    """
    columns = exact.shape[-1]
    rows = exact.reshape(-1, columns)
    scales = (rows.view(-1, columns // BLOCK, BLOCK).abs().amax(2) / LEVELS[-1]).half()
    codes, put_back = torch.empty_like(rows, dtype=torch.int8), PutBack()
    step = exact.shape[-2] if outputs_first else max(1, AT_ONCE // columns)
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        target, old, scale = rows[part], before.reshape(-1, columns)[part], scales[part].float().repeat_interleave(BLOCK, 1)
        if not outputs_first:
            target, old, scale = target.mT, old.mT, scale.mT
        places, one = rounded(Grid(LEVELS, scale.contiguous()), old, target, basis)
        put_back += one
        codes[part] = ((places if outputs_first else places.mT) + int(LEVELS[0])).to(torch.int8)
    blocks = torch.cat([scales.view(-1, 1).view(torch.uint8), codes.view(-1, BLOCK).view(torch.uint8)], dim=1)
    return blocks.view(*exact.shape[:-1], -1).numpy(), put_back
