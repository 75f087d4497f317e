"""Floats as they are stored: every one of 16 bits, and whatever is rounded to one, against torch's own casts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from demeanor.io.floats import STORED, rounded, widened

KINDS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
EVERY = np.arange(2**16, dtype=np.uint16)


def cast(values: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """What is stored of some numbers, as bits, and what it says."""
    stored = np.empty(values.shape, dtype=STORED[dtype])
    numbers = rounded(values.copy(), dtype, stored, np.empty_like(values))
    return stored.view(f"u{stored.itemsize}"), numbers


def bits(numbers: torch.Tensor) -> np.ndarray:
    return numbers.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[numbers.dtype.itemsize]).numpy().view(f"u{numbers.dtype.itemsize}")


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("infinite", [False, True])
def test_every_number_of_16_bits_is_read_and_stored_as_it_is(dtype: str, infinite: bool) -> None:
    wanted = torch.from_numpy(EVERY.view(np.int16)).view(KINDS[dtype]).float().numpy()
    chosen = ~np.isnan(wanted) if infinite else np.isfinite(wanted)
    stored = EVERY[chosen]
    numbers = widened(stored.view(STORED[dtype]), dtype, np.empty(stored.shape, dtype=np.float32))
    assert np.array_equal(numbers.view(np.uint32), wanted[chosen].view(np.uint32))  # bits: a zero has a sign
    again, same = cast(numbers, dtype)
    assert np.array_equal(again, stored)
    assert np.array_equal(same, numbers)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_what_is_no_number_is_read_as_none(dtype: str) -> None:
    wanted = torch.from_numpy(EVERY.view(np.int16)).view(KINDS[dtype]).float().numpy()
    numbers = widened(EVERY.view(STORED[dtype]), dtype, np.empty(EVERY.shape, dtype=np.float32))
    assert np.array_equal(np.isfinite(numbers), np.isfinite(wanted))


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("exponents", [(-30, 15), (-160, 128)], ids=["that F16 has", "of float32"])
def test_numbers_are_rounded_to_the_nearest_and_ties_to_the_even(dtype: str, exponents: tuple[int, int]) -> None:
    """Numbers of every size, those half way between two that can be stored, and those beside them."""
    rng = np.random.default_rng(0)
    work = np.float64 if dtype == "F64" else np.float32
    with np.errstate(over="ignore"):
        values = (rng.uniform(-2, 2, 100_000) * 2.0 ** rng.integers(*exponents, 100_000)).astype(work)
    halves = values[:50_000].astype(np.float32).view(np.uint32)
    last = {"BF16": 16, "F16": 13}.get(dtype, 8)
    ties = ((halves >> last << last) | np.uint32(1 << (last - 1))).view(np.float32)
    values = np.concatenate([values, *(np.nextafter(ties, side).astype(work) for side in (ties, np.float32(0), np.float32(np.inf)))])
    values = values[np.isfinite(values)]
    stored, numbers = cast(values, dtype)
    wanted = torch.from_numpy(values).to(KINDS[dtype])
    assert np.array_equal(stored, bits(wanted))
    assert np.array_equal(numbers, wanted.to(torch.float64 if dtype == "F64" else torch.float32).numpy())


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_what_becomes_no_number_is_told(dtype: str) -> None:
    for wrong in (np.nan, np.inf, -np.inf, np.inf - np.inf):
        values = np.array([1.0, wrong, -2.0], dtype=np.float32)
        assert not np.isfinite(cast(values, dtype)[1]).all()


def test_small_numbers_are_kept_where_a_thread_makes_those_of_float32_0() -> None:
    stored = EVERY[: 1 << 10].view(np.float16)  # below 2^-14
    numbers = np.empty(stored.shape, dtype=np.float32)
    torch.set_flush_denormal(True)
    try:
        again, _ = cast(widened(stored, "F16", numbers), "F16")
    finally:
        torch.set_flush_denormal(False)
    assert np.array_equal(again, stored.view(np.uint16))
