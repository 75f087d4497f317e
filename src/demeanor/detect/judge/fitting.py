"""Logistic regression over sparse features, with a penalty and a sign of its own for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

STEPS = 3000
STILL = 1e-5  # a step that moves no weight further ends the search


@dataclass(frozen=True)
class Sparse:
    """A matrix [rows, width] by its values that are not 0: where each stands, and what it is."""

    row: np.ndarray
    column: np.ndarray
    value: np.ndarray
    rows: int
    width: int

    @classmethod
    def of(cls, rows: Sequence[Mapping[int, float]], width: int) -> Sparse:
        """One mapping from column to value a row."""
        row = np.repeat(np.arange(len(rows)), [len(each) for each in rows])
        column = np.array([column for each in rows for column in each], dtype=np.int64)
        return cls(row, column, np.array([value for each in rows for value in each.values()]), len(rows), width)

    def beside(self, other: Sparse) -> Sparse:
        """The columns of both; `other` follows."""
        row, value = np.concatenate([self.row, other.row]), np.concatenate([self.value, other.value])
        column = np.concatenate([self.column, other.column + self.width])
        return Sparse(row, column, value, self.rows, self.width + other.width)

    def times(self, vector: np.ndarray) -> np.ndarray:
        """This matrix times a vector [width]."""
        return np.bincount(self.row, self.value * vector[self.column], self.rows)

    def transposed_times(self, vector: np.ndarray) -> np.ndarray:
        """The transpose times a vector [rows]."""
        return np.bincount(self.column, self.value * vector[self.row], self.width)


def minimise(x: Sparse, y: np.ndarray, weight: np.ndarray, ridge: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """The weights [width] of least weighted log loss plus ridge / 2 times their squares.

    y [rows] is in {0, 1}; `ridge` and `signs` [width] say what each weight costs and which sign it may have (0: either).
    Accelerated projected gradient (Beck and Teboulle 2009) with restarts where the loss would rise (O'Donoghue and
    Candes 2015), steps scaled per column, float64.
    """
    weight = weight / weight.sum()
    low, high = np.where(signs > 0, 0.0, -np.inf), np.where(signs < 0, 0.0, np.inf)
    # By Gershgorin: the row sums of |x| bound the curvature column by column.
    sums = np.bincount(x.row, np.abs(x.value), x.rows)
    step = 1 / (0.25 * np.bincount(x.column, np.abs(x.value) * (weight * sums)[x.row], x.width) + ridge + 1e-12)
    now = ahead = np.zeros(x.width)
    pace = 1.0
    for _ in range(STEPS):
        error = weight * (1 / (1 + np.exp(-x.times(ahead))) - y)
        after: np.ndarray = np.clip(ahead - step * (x.transposed_times(error) + ridge * ahead), low, high)
        if np.abs(after - now).max() < STILL:
            return after
        if ((ahead - after) / step) @ (after - now) > 0:
            pace = 1.0
        faster = (1 + np.sqrt(1 + 4 * pace * pace)) / 2
        ahead = after + (pace - 1) / faster * (after - now)
        now, pace = after, faster
    return now
