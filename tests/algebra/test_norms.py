"""Norms after a writer: what has to go before them, and how their gain is read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from demeanor.algebra.edits import ablate, clamp, edited, oblique, rotate, scale
from demeanor.algebra.norms import edit_before_norm, measured_gain, through_post_norm

SETTINGS = settings(derandomize=True, deadline=None, max_examples=40)
SEEDS = st.integers(0, 2**32 - 1)


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def basis_of(seed: int, k: int, d: int) -> Tensor:
    """Orthonormal rows [k, d]."""
    return torch.linalg.qr(gaussian(seed, d, k)).Q.T.contiguous()


def gains(seed: int, d: int) -> Tensor:
    """Gains of both signs, .5 to 2 in size, none alike."""
    rng = torch.Generator().manual_seed(seed)
    size = 0.5 + 1.5 * torch.rand(d, generator=rng, dtype=torch.float64)
    return size * (1 - 2 * torch.randint(2, (d,), generator=rng))


class RootMeanSquare(nn.Module):
    """An RMS norm whose gain is offset + weight, as models write it; weightless without a weight."""

    def __init__(self, weight: Tensor | None, offset: float) -> None:
        super().__init__()
        self.weight = None if weight is None else nn.Parameter(weight)
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        out = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return out * self.offset if self.weight is None else out * (self.offset + self.weight)


def layer_norm(gain: Tensor, bias: Tensor) -> nn.LayerNorm:
    norm = nn.LayerNorm(len(gain), dtype=gain.dtype)
    norm.load_state_dict({"weight": gain, "bias": bias})
    return norm


@SETTINGS
@given(
    seed=SEEDS,
    d=st.integers(8, 32),
    k=st.integers(1, 3),
    centred=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_what_is_removed_before_a_post_norm_does_not_come_out_of_it(seed: int, d: int, k: int, centred: bool, dtype: torch.dtype) -> None:
    """RMS and LayerNorm, rank k: nothing of the basis is left after the norm, where the basis itself, removed before, leaves some."""
    basis, gain, bias = basis_of(seed, k, d).to(dtype), gains(seed + 1, d).to(dtype), gaussian(seed + 2, d).to(dtype)
    x = (3 * gaussian(seed + 3, 16, d) + 1).to(dtype)
    norm = layer_norm(gain, bias) if centred else RootMeanSquare(gain, 0.0)
    before = through_post_norm(basis, gain, centred)
    torch.testing.assert_close(before @ before.T, torch.eye(k, dtype=dtype), rtol=0, atol=1e-5)

    def left(removed: Tensor) -> float:
        with torch.no_grad():
            out = norm(ablate(removed)(x))
            if centred:  # the norm's bias is a tensor of its own, and loses the basis as it stands
                out = out - bias + edited(bias, 0, ablate(basis))
        return float((out @ basis.T).abs().max())

    assert left(before) < (1e-6 if dtype == torch.float64 else 2e-5)
    assert left(basis) > 1e-2


@SETTINGS
@given(seed=SEEDS, d=st.integers(8, 32), k=st.integers(1, 3), centred=st.booleans())
def test_no_more_than_needed_is_removed_before_a_post_norm(seed: int, d: int, k: int, centred: bool) -> None:
    """As many rows as the basis has, each readable through the norm: r.norm(x) depends on x through them alone."""
    basis, gain = basis_of(seed, k, d), gains(seed + 1, d)
    before = through_post_norm(basis, gain, centred)
    assert before.shape == (k, d)
    rows = basis * gain
    rows = rows - rows.mean(-1, keepdim=True) if centred else rows
    both = torch.cat([before, rows])
    assert int(torch.linalg.matrix_rank(both, rtol=1e-9)) == k


@SETTINGS
@given(seed=SEEDS, d=st.integers(8, 32), degrees=st.floats(-180, 180), factor=st.floats(-2, 2), centred=st.booleans())
def test_what_is_turned_or_stretched_before_a_post_norm_comes_out_turned_or_stretched(
    seed: int, d: int, degrees: float, factor: float, centred: bool
) -> None:
    """Components along the basis come out as if edited after the norm, but for the length that the norm takes out."""
    basis, gain = basis_of(seed, 2, d), gains(seed + 1, d)
    x = gaussian(seed + 2, 16, d)
    norm = layer_norm(gain, torch.zeros_like(gain)) if centred else RootMeanSquare(gain, 0.0)
    for edit in (rotate(basis, degrees), scale(basis, factor)):
        before = edit_before_norm(edit, gain, centred)
        assert before is not None
        with torch.no_grad():
            found, wanted = norm(before(x)) @ basis.T, edit(norm(x)) @ basis.T

        def length(rows: Tensor) -> Tensor:
            return (rows - rows.mean(-1, keepdim=True) if centred else rows).norm(dim=-1, keepdim=True)

        torch.testing.assert_close(found * length(before(x)) / length(x), wanted, rtol=1e-3, atol=1e-3)


def test_an_edit_before_a_norm_is_the_ablation_before_it() -> None:
    basis, gain, x = basis_of(0, 3, 24), gains(1, 24), gaussian(2, 16, 24)
    for centred in (False, True):
        before = edit_before_norm(ablate(basis, 0.7), gain, centred)
        assert before is not None
        torch.testing.assert_close(before(x), ablate(through_post_norm(basis, gain, centred), 0.7)(x), rtol=0, atol=1e-12)


def test_no_norm_lets_an_oblique_edit_or_an_offset_through() -> None:
    basis, gain = basis_of(0, 2, 12), gains(1, 12)
    assert edit_before_norm(oblique(basis, basis_of(3, 2, 12)), gain, False) is None
    assert edit_before_norm(clamp(basis, torch.ones(2, dtype=torch.float64)), gain, False) is None


@pytest.mark.parametrize("centred", [False, True])
def test_editing_rows_one_by_one_would_leave_some(centred: bool) -> None:
    """Rank k needs the gained rows made orthonormal: they are not orthogonal to each other any more."""
    basis, gain = basis_of(0, 3, 24), gains(1, 24)
    gained = torch.cat([through_post_norm(row[None], gain, centred) for row in basis])
    norm = layer_norm(gain, torch.zeros_like(gain)) if centred else RootMeanSquare(gain, 0.0)
    x = gaussian(2, 16, 24)
    with torch.no_grad():
        one_by_one = norm(x - (x @ gained.T) @ gained) @ basis.T
        together = norm(ablate(through_post_norm(basis, gain, centred))(x)) @ basis.T
    assert float(one_by_one.abs().max()) > 1e-2
    assert float(together.abs().max()) < 1e-6


def test_a_direction_a_layer_norm_never_writes_needs_nothing_removed() -> None:
    """A LayerNorm of equal gains takes out the mean, so the all-ones direction has no rows before it."""
    ones = torch.full((1, 16), 0.25, dtype=torch.float64)
    assert through_post_norm(ones, torch.ones(16, dtype=torch.float64), centred=True).shape == (0, 16)
    assert through_post_norm(ones, torch.ones(16, dtype=torch.float64), centred=False).shape == (1, 16)


NORMS = [
    "layer_norm",
    "layer_norm_without_bias",
    "layer_norm_weightless",
    "rms",
    "torch_rms",
    "rms_one_plus",
    "rms_weightless",
    "rms_fixed",
]


def made(kind: str, gain: Tensor, bias: Tensor) -> tuple[nn.Module, Tensor, Tensor, bool]:
    """A norm, and the gain, bias and centring it was made with."""
    d, none, ones = len(gain), torch.zeros_like(gain), torch.ones_like(gain)
    if kind == "layer_norm":
        return layer_norm(gain, bias), gain, bias, True
    if kind == "layer_norm_without_bias":
        return layer_norm(gain, none), gain, none, True
    if kind == "layer_norm_weightless":
        return nn.LayerNorm(d, elementwise_affine=False), ones, none, True
    if kind == "rms":
        return RootMeanSquare(gain, 0.0), gain, none, False
    if kind == "torch_rms":
        norm = nn.RMSNorm(d, eps=1e-6, dtype=gain.dtype)
        norm.load_state_dict({"weight": gain})
        return norm, gain, none, False
    if kind == "rms_one_plus":
        return RootMeanSquare(gain - 1, 1.0), gain, none, False
    if kind == "rms_weightless":
        return RootMeanSquare(None, 1.0), ones, none, False
    return RootMeanSquare(None, 2.5), 2.5 * ones, none, False


@settings(SETTINGS, max_examples=50)
@given(kind=st.sampled_from(NORMS), seed=SEEDS, d=st.integers(4, 96), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_gain_bias_and_centring_are_read_off_any_norm(kind: str, seed: int, d: int, dtype: torch.dtype) -> None:
    """Whether the gain is a weight, one plus a weight or nothing, and whether d_model is odd or even."""
    norm, gain, bias, centred = made(kind, gains(seed, d).to(dtype), gaussian(seed + 1, d).to(dtype))
    with torch.no_grad():
        found_gain, found_bias, found_centred = measured_gain(norm, d, torch.zeros(1, dtype=dtype))
    assert found_centred is centred
    torch.testing.assert_close(found_gain, gain.double(), rtol=0, atol=5e-5)
    torch.testing.assert_close(found_bias, bias.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", NORMS)
def test_measured_gain_is_what_through_post_norm_needs(kind: str) -> None:
    """Read and removed together, without a look at the module's class: nothing of the basis leaves the norm."""
    norm, _, _, _ = made(kind, gains(0, 48), gaussian(1, 48))
    basis, x = basis_of(2, 2, 48), gaussian(3, 16, 48) + 0.5
    with torch.no_grad():
        gain, bias, centred = measured_gain(norm, 48, x)
        out = norm(ablate(through_post_norm(basis, gain, centred))(x)) - bias
        plain = norm(x) - bias
    assert float((out @ basis.T).abs().max()) < 1e-5 * float((plain @ basis.T).abs().max())
