"""Rows cut into pieces of work."""

from __future__ import annotations

from collections.abc import Sequence

from ..runtime.batches import TOKEN_BUDGET

FEW = 4  # rows of a piece at least, where there are so many: a smaller one costs more to hand over than to do


def cut(costs: Sequence[int], kinds: Sequence[tuple[int, ...]], wanted: int) -> list[list[int]]:
    """The numbers of rows, in pieces of about the same cost: so many as there are batches in all, and `wanted` where there are rows enough.

    Rows of one kind stay together, since what acts on them is laid once for a piece, and rows of like cost beside each other, since they
    are padded. Which rows share a piece depends on these arguments alone, and not on who is there to do them.
    """
    order = sorted(range(len(costs)), key=lambda row: (kinds[row], -costs[row]))
    total = sum(costs)
    count = max(1, -(-total // TOKEN_BUDGET), min(wanted, len(costs) // FEW))
    pieces: list[list[int]] = [[] for _ in range(count)]
    before = 0
    for row in order:
        pieces[min(count - 1, before * count // max(1, total))].append(row)
        before += costs[row]
    return [piece for piece in pieces if piece]
