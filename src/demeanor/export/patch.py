"""Edits of tensors in place, a block of rows at a time, in float32."""

from __future__ import annotations

from torch import Tensor

from ..algebra.edits import Edit, edited
from ..io.checkpoint import DTYPES, Stored
from ..runtime.adapters import Adapter

BLOCK_BYTES = 32 << 20  # of a tensor held in memory at a time


class NotFinite(ValueError):
    """A value that is infinite or no number: of the tensor as it was, or as it became."""

    def __init__(self, in_source: bool) -> None:
        super().__init__()
        self.in_source = in_source


def element_count(stored: Stored) -> int:
    return (stored.end - stored.start) // DTYPES[stored.dtype].itemsize


def edit_in_place(tensor: Tensor, axis: int, edit: Edit) -> None:
    """W + (W V^T) M on `axis`, a block at a time; tensor of any float dtype. Raises NotFinite where something of it is no number."""
    moved = tensor.movedim(axis, -1)  # a view: [..., d_model]
    flat = moved.reshape(-1, moved.shape[-1]) if moved.is_contiguous() else moved
    if flat.dim() == 1:
        flat = flat[None]
    per_block = max(1, BLOCK_BYTES // (4 * flat[0].numel()))
    for start in range(0, len(flat), per_block):
        block = flat[start : start + per_block]
        _put(block, edited(block.float(), -1, edit))


def add_low_rank(tensor: Tensor, adapter: Adapter, name: str) -> None:
    """W + dose B A for one linear layer's stored weight, a block of rows at a time. Raises NotFinite where something of it is no number."""
    a, b = (half.float() for half in adapter.low_rank[name])
    left, right = (a.mT, b.mT) if adapter.transposed else (b, a)
    per_block = max(1, BLOCK_BYTES // (4 * tensor.shape[1]))
    for start in range(0, len(tensor), per_block):
        block = tensor[start : start + per_block]
        _put(block, block.float() + adapter.dose * left[start : start + per_block] @ right)


def _put(block: Tensor, values: Tensor) -> None:
    """The values in place of the block, in its dtype."""
    before = bool(block.isfinite().all())
    block.copy_(values)
    if not before or not block.isfinite().all():
        raise NotFinite(in_source=not before)
