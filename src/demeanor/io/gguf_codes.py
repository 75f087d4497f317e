"""Tensors of GGUF files in few bits: where in a block the codes of its weights lie, and what scale each of them has.

A weight is scale * (code - zero), in some types plus a number that its block, or part of a block, has in common, and which no change of codes touches.
Rows of a tensor are whole blocks, one after the other. Tried against the package gguf in tests/io/test_gguf_codes.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Field:
    """Some bits of every code: `count` bytes of the block, from `first` on. A byte has those of 8 / bits weights, lowest first, which lie `run` weights apart."""

    first: int
    count: int
    bits: int
    run: int

    def read(self, blocks: Array) -> Array:
        """Of blocks [n, bytes], uint8: [n, weights]."""
        packed = blocks[:, self.first : self.first + self.count].reshape(len(blocks), -1, 1, self.run)
        return ((packed >> self._shifts) & np.uint8((1 << self.bits) - 1)).reshape(len(blocks), -1)

    def write(self, blocks: Array, values: Array) -> None:
        """The other way round, into `blocks`; only the lowest `bits` of values [n, weights] are taken."""
        low = values.reshape(len(blocks), -1, 8 // self.bits, self.run) & np.uint8((1 << self.bits) - 1)
        blocks[:, self.first : self.first + self.count] = np.bitwise_or.reduce(low << self._shifts, axis=2).reshape(len(blocks), -1)

    @property
    def _shifts(self) -> Array:
        return np.arange(0, 8, self.bits, dtype=np.uint8)[:, None]


@dataclass(frozen=True)
class Blocks:
    """How a type lies in its blocks of `weights` weights and `size` bytes.

    fields: the lowest bits of the codes first. scales: of blocks [n, bytes], float32 [n, groups], one for every weights / groups in turn.
    inverted: the bits of a code that are stored the other way round (two's complement is that of the highest one).
    """

    weights: int
    size: int
    fields: tuple[Field, ...]
    zero: int
    scales: Callable[[Array], Array]
    inverted: int = 0

    @property
    def levels(self) -> Array:
        """What a scale is multiplied with, by code: float32, rising."""
        return np.arange(1 << sum(field.bits for field in self.fields), dtype=np.float32) - self.zero

    def codes(self, rows: Array) -> Array:
        """Of rows [r, bytes], uint8: [r, weights]."""
        blocks, place = rows.reshape(-1, self.size), 0
        codes = np.zeros((len(blocks), self.weights), np.uint8)
        for field in self.fields:
            codes |= field.read(blocks) << np.uint8(place)
            place += field.bits
        return (codes ^ np.uint8(self.inverted)).reshape(len(rows), -1)

    def with_codes(self, rows: Array, codes: Array) -> Array:
        """The same rows [r, bytes] with other codes [r, weights], and every other bit as it was."""
        changed, place = rows.reshape(-1, self.size).copy(), 0
        values = codes.astype(np.uint8).reshape(-1, self.weights) ^ np.uint8(self.inverted)
        for field in self.fields:
            field.write(changed, values >> np.uint8(place))
            place += field.bits
        return changed.reshape(rows.shape)

    def scale(self, rows: Array) -> Array:
        """Of rows [r, bytes]: the scale of every weight, float32 [r, weights]."""
        scales = self.scales(rows.reshape(-1, self.size))
        return scales.repeat(self.weights // scales.shape[1], axis=1).reshape(len(rows), -1)


def _half(blocks: Array, first: int = 0) -> Array:
    """A float16 in every block: float32 [n, 1]."""
    return blocks[:, first : first + 2].copy().view("<f2").astype(np.float32)


def _six_bits(blocks: Array) -> Array:
    """Eight scales of 6 bits, those of the second half with their highest two bits in the bytes of the first."""
    first, second = blocks[:, 4:8], blocks[:, 12:16]
    scales: Array = _half(blocks) * np.concatenate([first & 0x3F, (second & 0x0F) | ((first >> 2) & 0x30)], axis=1)
    return scales


def _bytes(blocks: Array) -> Array:
    """Sixteen signed scales of 8 bits in front of the float16 at the end."""
    return _half(blocks, 208) * blocks[:, 192:208].view(np.int8)


def _low_halves(blocks: Array) -> Array:
    """Sixteen scales of 4 bits in front, the lower half of a byte each."""
    scales: Array = _half(blocks, 80) * (blocks[:, :16] & 15)
    return scales


def _signed_six_bits(blocks: Array) -> Array:
    """Sixteen signed scales of 6 bits, the lowest four of them apart from the others."""
    scales: Array = _half(blocks, 108) * ((Field(96, 8, 4, 8).read(blocks) | Field(104, 4, 2, 4).read(blocks) << 4).astype(np.float32) - 32)
    return scales


BLOCKS = {
    "Q4_0": Blocks(32, 18, (Field(2, 16, 4, 16),), 8, _half),
    "Q4_1": Blocks(32, 20, (Field(4, 16, 4, 16),), 0, _half),
    "Q5_0": Blocks(32, 22, (Field(6, 16, 4, 16), Field(2, 4, 1, 1)), 16, _half),
    "Q5_1": Blocks(32, 24, (Field(8, 16, 4, 16), Field(4, 4, 1, 1)), 0, _half),
    "Q8_0": Blocks(32, 34, (Field(2, 32, 8, 32),), 128, _half, inverted=128),
    "Q2_K": Blocks(256, 84, (Field(16, 64, 2, 32),), 0, _low_halves),
    "Q3_K": Blocks(256, 110, (Field(32, 64, 2, 32), Field(0, 32, 1, 32)), 4, _signed_six_bits),
    "Q4_K": Blocks(256, 144, (Field(16, 128, 4, 32),), 0, _six_bits),
    "Q5_K": Blocks(256, 176, (Field(48, 128, 4, 32), Field(16, 32, 1, 32)), 0, _six_bits),
    "Q6_K": Blocks(256, 210, (Field(0, 128, 4, 64), Field(128, 64, 2, 32)), 32, _bytes),
}
