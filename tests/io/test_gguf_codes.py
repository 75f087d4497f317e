"""Codes of GGUF blocks, beside what the package gguf makes of the same bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demeanor.io.gguf_codes import BLOCKS

gguf = pytest.importorskip("gguf", reason="GGUF files take the package gguf: pip install 'demeanor[gguf]'")
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q2_K": (80, 82), "Q3_K": (108,)}  # where the float16 numbers of a block lie; else at its beginning


def random_rows(name: str, rows: int, blocks: int, seed: int) -> np.ndarray[Any, Any]:
    """Any bytes, but for scales that are numbers, of either sign."""
    form, rng = BLOCKS[name], np.random.default_rng(seed)
    made = rng.integers(0, 256, (rows * blocks, form.size), dtype=np.uint8)
    for place in HALVES.get(name, (0,)):
        made[:, place : place + 2] = rng.normal(0, 0.1, (len(made), 1)).astype(np.float16).view(np.uint8)
    return made.reshape(rows, -1)


def unpacked(name: str, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = gguf.dequantize(rows, gguf.GGMLQuantizationType[name])
    return values


shapes = {"rows": st.integers(1, 5), "blocks": st.integers(1, 4), "seed": st.integers(0, 1 << 30)}


@pytest.mark.parametrize("name", BLOCKS)
def test_sizes_are_those_of_the_package(name: str) -> None:
    assert (BLOCKS[name].weights, BLOCKS[name].size) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]


@pytest.mark.parametrize("name", BLOCKS)
@settings(max_examples=25, deadline=None)
@given(**shapes)
def test_scale_and_code_say_what_the_package_unpacks(name: str, rows: int, blocks: int, seed: int) -> None:
    """What a block has in common is what the package makes of it with every code at zero."""
    form, packed = BLOCKS[name], random_rows(name, rows, blocks, seed)
    codes = form.codes(packed)
    common = unpacked(name, form.with_codes(packed, np.full_like(codes, form.zero)))
    assert np.array_equal(form.scale(packed) * form.levels[codes] + common, unpacked(name, packed))
    assert not (form.zero and common.any())


@pytest.mark.parametrize("name", BLOCKS)
@settings(max_examples=25, deadline=None)
@given(**shapes)
def test_codes_are_written_where_they_are_read_and_nothing_else_is(name: str, rows: int, blocks: int, seed: int) -> None:
    form, packed = BLOCKS[name], random_rows(name, rows, blocks, seed)
    assert np.array_equal(form.with_codes(packed, form.codes(packed)), packed)
    codes = np.random.default_rng(seed).integers(0, len(form.levels), (rows, blocks * form.weights))
    changed = form.with_codes(packed, codes)
    assert np.array_equal(form.codes(changed), codes)
    assert np.array_equal(form.scale(changed), form.scale(packed))
    assert np.array_equal(form.with_codes(changed, form.codes(packed)), packed)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_codes_are_those_that_the_package_packs(name: str) -> None:
    form, values = BLOCKS[name], np.random.default_rng(0).normal(size=(3, 96)).astype(np.float32)
    packed = gguf.quantize(values, gguf.GGMLQuantizationType[name])
    nearest = np.abs((form.scale(packed) * (form.levels[form.codes(packed)])) + unpacked(name, form.with_codes(packed, np.full((3, 96), form.zero))) - values)
    assert (nearest <= np.abs(form.scale(packed)) * 0.51 + 1e-6).mean() > 0.95  # a clipped end may be further off
