"""Rows cut into pieces: each row once, kinds together, and of like cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from demeanor.models.pieces import FEW, cut
from demeanor.runtime.batches import TOKEN_BUDGET

ROWS = some.lists(some.tuples(some.integers(1, 400), some.integers(0, 3)), min_size=1, max_size=80)


@given(ROWS, some.integers(1, 8))
def test_every_row_is_in_one_piece(rows: list[tuple[int, int]], wanted: int) -> None:
    pieces = cut([cost for cost, _ in rows], [(kind,) for _, kind in rows], wanted)
    assert sorted(row for piece in pieces for row in piece) == list(range(len(rows)))
    assert all(pieces)
    assert len(pieces) <= max(1, wanted, -(-sum(cost for cost, _ in rows) // TOKEN_BUDGET))


def test_pieces_are_as_many_as_wanted_where_there_are_rows_enough_and_cost_about_the_same() -> None:
    costs = [10 + row % 7 for row in range(200)]
    pieces = cut(costs, [()] * 200, 8)
    assert len(pieces) == 8
    sizes = [sum(costs[row] for row in piece) for piece in pieces]
    assert max(sizes) - min(sizes) <= 2 * max(costs)
    assert len(cut([10] * (2 * FEW), [()] * (2 * FEW), 8)) == 2  # a few rows are not worth more


def test_rows_under_one_control_stay_together() -> None:
    kinds = [(row % 4,) for row in range(64)]
    assert [{kinds[row] for row in piece} for piece in cut([12] * 64, kinds, 4)] == [{(0,)}, {(1,)}, {(2,)}, {(3,)}]
