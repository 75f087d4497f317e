"""The algebra of edits says the same of numpy's arrays as of torch's, in arrays of the library that it was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from demeanor.algebra import bases, edits
from demeanor.algebra.norms import edit_before_norm, through_post_norm
from demeanor.arrays import in_numpy, in_torch

SETTINGS = settings(derandomize=True, deadline=None, max_examples=25)
MADE: dict[str, Callable[[Any, Any, Any], edits.Edit]] = {  # of an orthonormal basis [2, d], others [2, d] and numbers [2]
    "ablate": lambda basis, other, numbers: edits.ablate(basis, 0.7),
    "scale": lambda basis, other, numbers: edits.scale(basis, 1.5),
    "rotate": lambda basis, other, numbers: edits.rotate(basis, 30),
    "oblique": lambda basis, other, numbers: edits.oblique(basis, basis + 0.1 * other, 0.9),
    "add": lambda basis, other, numbers: edits.add(other[0]),
    "clamp": lambda basis, other, numbers: edits.clamp(basis, numbers),
    "transport": lambda basis, other, numbers: edits.transport(basis, other, numbers),
}


def same(found: Any, wanted: Tensor, tolerance: float = 1e-5) -> None:
    assert isinstance(found, np.ndarray)
    assert str(wanted.dtype) == f"torch.{found.dtype}"
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=tolerance, atol=tolerance)


@SETTINGS
@given(seed=st.integers(0, 2**32 - 1), d=st.integers(3, 12), kind=st.sampled_from(sorted(MADE)), other_kind=st.sampled_from(sorted(MADE)), centred=st.booleans())
def test_an_edit_is_the_same_of_either(seed: int, d: int, kind: str, other_kind: str, centred: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, 2, generator=rng, dtype=torch.float64)).Q.T.float().contiguous()
    other, numbers, x, gain = (torch.randn(*shape, generator=rng) for shape in ((2, d), (2,), (4, d), (d,)))
    ours = tuple(map(in_numpy, (basis, other, numbers)))
    wanted, found = MADE[kind](basis, other, numbers), MADE[kind](*ours)
    for one, two in ((found, wanted), (edits.compose(found, MADE[other_kind](*ours)), edits.compose(wanted, MADE[other_kind](basis, other, numbers)))):
        for mine, its in zip((one.V, one.M, one.b), (two.V, two.M, two.b)):
            same(mine, its)
        same(one(in_numpy(x)), two(x), 1e-4)
    before, expected = edit_before_norm(found, in_numpy(gain), centred), edit_before_norm(wanted, gain, centred)
    assert (before is None) == (expected is None)
    if before is not None and expected is not None:
        same(in_numpy(before(in_numpy(x))), expected(x), 1e-3)
    if not bool(wanted.b.any()):
        same(edits.edited(in_numpy(x), 1, found), edits.edited(x, 1, wanted), 1e-4)


@SETTINGS
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 5), d=st.integers(3, 12), dtype=st.sampled_from([torch.float32, torch.float64]), centred=st.booleans())
def test_a_basis_is_the_same_of_either(seed: int, n: int, d: int, dtype: torch.dtype, centred: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    rows, gain = torch.randn(n, d, generator=rng, dtype=torch.float64).to(dtype), torch.randn(d, generator=rng, dtype=torch.float64).to(dtype)
    rows = torch.cat([rows, 2 * rows[:1], torch.zeros(1, d, dtype=dtype)])
    same(bases.unit(in_numpy(rows)), bases.unit(rows))
    basis = bases.orthonormal(rows)
    same(bases.orthonormal(in_numpy(rows)), basis)
    assert bases.is_orthonormal(in_numpy(basis)) is bases.is_orthonormal(basis) is True
    assert bases.is_orthonormal(in_numpy(rows)) is bases.is_orthonormal(rows) is False
    same(through_post_norm(in_numpy(basis), in_numpy(gain), centred), through_post_norm(basis, gain, centred), 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numpys_arrays_hold_what_torchs_do(dtype: torch.dtype) -> None:
    tensor = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    array = in_numpy(tensor)
    assert array.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    assert torch.equal(in_torch(array), tensor.to(in_torch(array).dtype))
