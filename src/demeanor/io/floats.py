"""Floats as files store them, and as numbers. numpy does not know BF16, the upper half of a float32, and casts F16 one by one: both are made of integers here, many at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

Numbers = np.ndarray[Any, np.dtype[Any]]
STORED: dict[str, np.dtype[Any]] = {"F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(np.uint16)}  # BF16: its bits
UPPER, BELOW_A_TIE = np.uint32(0xFFFF0000), np.uint32(0x7FFF)
# F16 has 5 bits of exponent and 10 behind the point, float32 8 and 23: as such bits stand in a float32, the number is by 2^112 too small.
DROPPED, LARGER, SMALLER = 13, np.float32(2.0**112), np.float32(2.0**-112)
SIGN_AND_F16 = np.int32(-0x70002000)  # 0x8FFFE000
EXPONENT, SMALLEST_NORMAL = np.uint32(0x7F800000), np.uint32(0x38800000)  # 2^-14, as bits
ROUNDING = np.uint32((DROPPED << 23) | 0x400000)  # to a power of two: 3/2 of that whose last bit is the last that F16 keeps
SMALLEST = np.array([1], np.uint32).view(np.float32)  # 2^-149
INFINITE, BECOMES_INFINITE = 65536.0, 65520.0  # what infinity would be if it were a number of F16, and what is rounded to it


def widened(stored: Numbers, dtype: str, out: Numbers) -> Numbers:
    """What is stored as `dtype`, as the numbers `out`: float32, or float64 for F64."""
    if dtype == "BF16":
        bits = out.view(np.uint32)
        np.copyto(bits, stored)
        np.left_shift(bits, 16, out=bits)
    elif dtype == "F16" and _keeps_small():
        signed = out.view(np.int32)
        np.copyto(signed, stored.view(np.int16))
        np.left_shift(signed, DROPPED, out=signed)
        np.bitwise_and(signed, SIGN_AND_F16, out=signed)
        np.multiply(out, LARGER, out=out)
        if not _within(out, INFINITE):
            np.copyto(out, stored)
    else:
        np.copyto(out, stored)
    return out


def rounded(values: Numbers, dtype: str, out: Numbers, spare: Numbers) -> Numbers:
    """Numbers to the nearest that can be stored as `dtype`, a tie to the even one: stored in `out`, and returned as numbers, which lie in `spare`.

    `spare` is like `values`, of which nothing is left. What is too large becomes infinite. What is no number in F16 stays none in what is returned, and
    so does what BF16 has no number for, which is all that is no number where values were widened from it.
    """
    if dtype == "BF16":
        bits, sums = values.view(np.uint32), spare.view(np.uint32)
        np.right_shift(bits, 16, out=sums)
        np.bitwise_and(sums, 1, out=sums)
        np.add(sums, BELOW_A_TIE, out=sums)
        np.add(sums, bits, out=sums)
        np.right_shift(sums, 16, out=out, casting="unsafe")
        np.bitwise_and(sums, UPPER, out=sums)
    elif dtype == "F16" and _keeps_small() and _within(values, BECOMES_INFINITE):
        _rounded_to_f16(values, out.view(np.uint16), spare)
    else:
        with np.errstate(over="ignore"):
            np.copyto(out, values, casting="same_kind")
        np.copyto(spare, out)
    return spare


def _rounded_to_f16(values: Numbers, out: Numbers, spare: Numbers) -> None:
    """The same for numbers that F16 reaches. A large number of the right size, added and taken away again, has the adder round to its last bit."""
    large, bits = spare.view(np.uint32), values.view(np.uint32)
    np.right_shift(bits, 16, out=out, casting="unsafe")
    np.bitwise_and(out, 0x8000, out=out)  # the sign, which a zero would lose
    np.bitwise_and(bits, EXPONENT, out=large)
    np.maximum(large, SMALLEST_NORMAL, out=large)  # smaller numbers have the last bit of this one
    np.add(large, ROUNDING, out=large)
    np.add(values, spare, out=values)
    np.subtract(values, spare, out=spare)
    np.multiply(spare, SMALLER, out=values)
    np.right_shift(bits, DROPPED, out=bits)
    np.bitwise_or(out, bits, out=out, dtype=np.uint16, casting="unsafe")


def _keeps_small() -> bool:
    """Whether this thread computes with float32 below 2^-126, through which F16 goes here: it may have been told to make them 0."""
    return bool(np.multiply(SMALLEST, LARGER)[0] > 0)


def _within(values: Numbers, limit: float) -> bool:
    """Whether all numbers are nearer to 0 than a limit; what is no number is let pass."""
    return not values.size or not (values.max() >= limit or values.min() <= -limit)
