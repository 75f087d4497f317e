"""Floats as files store them, and as numbers: numpy knows all of them but BF16, which is the upper half of a float32."""

from __future__ import annotations

from typing import Any

import numpy as np

Numbers = np.ndarray[Any, np.dtype[Any]]
STORED: dict[str, np.dtype[Any]] = {"F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(np.uint16)}  # the bits of BF16
UPPER, HALF = np.uint32(0xFFFF0000), np.uint32(0x7FFF)


def widened(stored: Numbers, dtype: str, out: Numbers) -> Numbers:
    """What is stored as `dtype`, as the numbers `out`: float32, or float64 for F64."""
    if dtype != "BF16":
        np.copyto(out, stored)
        return out
    bits = out.view(np.uint32)
    np.copyto(bits, stored)
    np.left_shift(bits, 16, out=bits)
    return out


def rounded(values: Numbers, dtype: str, out: Numbers, spare: Numbers) -> Numbers:
    """Numbers to the nearest that can be stored as `dtype`, a tie to the even one: stored in `out`, and returned as numbers. These lie in `spare`, which is like values.

    What is too large becomes infinite. What is no number stays none, but for such as no arithmetic makes.
    """
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            np.copyto(out, values, casting="same_kind")
        np.copyto(spare, out)
        return spare
    bits, sums = values.view(np.uint32), spare.view(np.uint32)
    np.right_shift(bits, 16, out=sums)
    np.bitwise_and(sums, 1, out=sums)
    np.add(sums, HALF, out=sums)
    np.add(sums, bits, out=sums)
    np.right_shift(sums, 16, out=out, casting="unsafe")
    np.bitwise_and(sums, UPPER, out=sums)
    return spare
