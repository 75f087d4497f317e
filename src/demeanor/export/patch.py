"""Edits of tensors in place, a block of rows at a time, in float32."""

from __future__ import annotations

from torch import Tensor

from ..algebra.edits import Edit, edited
from ..io.checkpoint import DTYPES, Stored
from ..runtime.adapters import Adapter

BLOCK_BYTES = 32 << 20  # of a tensor held in memory at a time


def element_count(stored: Stored) -> int:
    return (stored.end - stored.start) // DTYPES[stored.dtype].itemsize


def edit_in_place(tensor: Tensor, axis: int, edit: Edit) -> None:
    """W + (W V^T) M on `axis`, a block at a time; tensor of any float dtype."""
    moved = tensor.movedim(axis, -1)  # a view: [..., d_model]
    flat = moved.reshape(-1, moved.shape[-1]) if moved.is_contiguous() else moved
    if flat.dim() == 1:
        flat = flat[None]
    per_block = max(1, BLOCK_BYTES // (4 * flat[0].numel()))
    for start in range(0, len(flat), per_block):
        block = flat[start : start + per_block]
        block.copy_(edited(block.float(), -1, edit))


def add_low_rank(tensor: Tensor, adapter: Adapter, name: str) -> None:
    """W + dose B A for one linear layer's stored weight, a block of rows at a time."""
    a, b = (half.float() for half in adapter.low_rank[name])
    left, right = (a.mT, b.mT) if adapter.transposed else (b, a)
    per_block = max(1, BLOCK_BYTES // (4 * tensor.shape[1]))
    for start in range(0, len(tensor), per_block):
        block = tensor[start : start + per_block]
        block.copy_(block.float() + adapter.dose * left[start : start + per_block] @ right)
