"""Edits against the textbook, at run time and in weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from demeanor.algebra.edits import Edit, ablate, ablated, add

SETTINGS = settings(derandomize=True, deadline=None, max_examples=50)
SEEDS = st.integers(0, 2**32 - 1)
STRENGTHS = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.floats(-2, 2))
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def basis_of(seed: int, k: int, d: int) -> Tensor:
    """Orthonormal rows [k, d]."""
    return torch.linalg.qr(gaussian(seed, d, k)).Q.T.contiguous()


def dot(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def slow(x: list[float], read: list[list[float]], write: list[list[float]], offset: list[float]) -> list[float]:
    """x + sum_i (x . read_i) write_i + offset of one vector, number by number."""
    amounts = [dot(x, v) for v in read]
    return [value + math.fsum(a * w[j] for a, w in zip(amounts, write, strict=True)) + offset[j] for j, value in enumerate(x)]


def slow_rows(x: Tensor, read: Tensor, write: Tensor, offset: Tensor) -> Tensor:
    rows = [slow(row, read.tolist(), write.tolist(), offset.tolist()) for row in x.reshape(-1, x.shape[-1]).tolist()]
    return torch.tensor(rows, dtype=torch.float64).reshape(x.shape)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], int]:
    """[..., d_model] with up to two leading axes, and a rank that fits."""
    d = draw(st.integers(1, 8))
    return (*draw(st.lists(st.integers(1, 3), max_size=2)), d), draw(st.integers(1, min(d, 4)))


@SETTINGS
@given(seed=SEEDS, shape_rank=shapes(), strength=STRENGTHS, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_ablate_subtracts_its_share_of_each_component(
    seed: int, shape_rank: tuple[tuple[int, ...], int], strength: float, dtype: torch.dtype
) -> None:
    """x - s sum_i (r_i . x) r_i, for any leading axes, rank, strength and dtype."""
    shape, k = shape_rank
    basis, x = basis_of(seed, k, shape[-1]).to(dtype), gaussian(seed + 1, *shape).to(dtype)
    found = ablate(basis, strength)(x)
    assert found.dtype == dtype
    none = torch.zeros(shape[-1], dtype=torch.float64)
    expected = slow_rows(x.double(), basis.double(), -strength * basis.double(), none)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=TOLERANCE[dtype])


@SETTINGS
@given(seed=SEEDS, shape_rank=shapes(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_ablate_at_strength_one_leaves_nothing_and_the_rest_untouched(
    seed: int, shape_rank: tuple[tuple[int, ...], int], dtype: torch.dtype
) -> None:
    """|r.x| ~ 0 on a large stream, and what is orthogonal to the basis passes unchanged."""
    shape, k = shape_rank
    d = shape[-1]
    everything = basis_of(seed, d, d)
    basis, rest = everything[:k].to(dtype), everything[k:].to(dtype)
    x = (100 * gaussian(seed + 1, *shape)).to(dtype)
    edited = ablate(basis)(x)
    scale = TOLERANCE[dtype] * 100
    assert float((edited @ basis.T).abs().max()) < 10 * scale
    torch.testing.assert_close(edited @ rest.T, x @ rest.T, rtol=0, atol=10 * scale)


@SETTINGS
@given(seed=SEEDS, shape_rank=shapes(), strength=STRENGTHS)
def test_ablate_keeps_the_rest_of_a_component(seed: int, shape_rank: tuple[tuple[int, ...], int], strength: float) -> None:
    """What stays of every component is (1 - s) of it: 2 mirrors, negative strengthens."""
    shape, k = shape_rank
    basis, x = basis_of(seed, k, shape[-1]), gaussian(seed + 1, *shape)
    torch.testing.assert_close(ablate(basis, strength)(x) @ basis.T, (1 - strength) * (x @ basis.T), rtol=0, atol=1e-12)


@SETTINGS
@given(seed=SEEDS, shape_rank=shapes(), dose=STRENGTHS)
def test_add_moves_every_vector_alike(seed: int, shape_rank: tuple[tuple[int, ...], int], dose: float) -> None:
    """x + dose * offset exactly, whatever x is."""
    shape, _ = shape_rank
    x, offset = gaussian(seed, *shape), gaussian(seed + 1, shape[-1])
    empty = torch.zeros(0, shape[-1], dtype=torch.float64)
    torch.testing.assert_close(add(offset)(x), slow_rows(x, empty, empty, offset), rtol=0, atol=1e-12)
    torch.testing.assert_close(add(offset).scaled(dose)(x) - x, (dose * offset).expand(shape), rtol=0, atol=1e-12)


@SETTINGS
@given(seed=SEEDS, shape_rank=shapes(), dose=STRENGTHS)
def test_any_edit_is_affine_and_scales(seed: int, shape_rank: tuple[tuple[int, ...], int], dose: float) -> None:
    """V, M and b independent of each other: the general formula, and scaled() multiplies the whole change, not x."""
    shape, k = shape_rank
    d = shape[-1]
    x, read, write, offset = gaussian(seed, *shape), gaussian(seed + 1, k, d), gaussian(seed + 2, k, d), gaussian(seed + 3, d)
    edit = Edit(read, write, offset)
    assert edit.d_model == d
    torch.testing.assert_close(edit(x), slow_rows(x, read, write, offset), rtol=0, atol=1e-12)
    torch.testing.assert_close(edit(x), x + edit.delta(x), rtol=0, atol=0)
    torch.testing.assert_close(edit.scaled(dose)(x), slow_rows(x, read, dose * write, dose * offset), rtol=0, atol=1e-11)
    torch.testing.assert_close(edit.scaled(0)(x), x, rtol=0, atol=0)


def test_edit_follows_the_dtype_of_what_it_is_put_on() -> None:
    """A float64 edit can be put on a bfloat16 stream; the original is not changed."""
    edit = Edit(gaussian(0, 2, 6), gaussian(1, 2, 6), gaussian(2, 6))
    x = gaussian(3, 4, 6).bfloat16()
    assert edit.to(x)(x).dtype == torch.bfloat16
    assert edit.V.dtype == torch.float64
    torch.testing.assert_close(edit.to(x)(x).double(), edit(x.double()), rtol=0.05, atol=0.15)


@pytest.mark.parametrize(
    ("read", "write", "offset"),
    [((1, 4), (1, 5), (4,)), ((1, 4), (2, 4), (4,)), ((1, 4), (1, 4), (5,)), ((4,), (4,), (4,)), ((1, 4), (1, 4), (1, 4))],
)
def test_edit_refuses_parts_that_do_not_fit(read: tuple[int, ...], write: tuple[int, ...], offset: tuple[int, ...]) -> None:
    """Broadcasting never hides a wrong shape."""
    with pytest.raises(ValueError, match="do not fit"):
        Edit(torch.zeros(read), torch.zeros(write), torch.zeros(offset))


def test_ablate_of_an_empty_basis_changes_nothing() -> None:
    """through_post_norm returns no rows where a norm lets nothing of a direction through."""
    x = gaussian(0, 3, 5)
    torch.testing.assert_close(ablate(torch.zeros(0, 5, dtype=torch.float64))(x), x)


# Where d_model ("o") is in a weight, and how a model uses it: einsum of weight and input to [token, o].
MAPS = {
    "linear": ("oi", 0, "oi,ti->to"),
    "conv1d": ("io", 1, "io,ti->to"),
    "experts_out_in": ("eoi", 1, "eoi,te,ti->to"),
    "experts_in_out": ("eio", 2, "eio,te,ti->to"),
    "experts_first": ("oei", 0, "oei,te,ti->to"),
    "embedding": ("io", -1, "io,ti->to"),
}


@SETTINGS
@given(
    kind=st.sampled_from(sorted(MAPS)),
    seed=SEEDS,
    d=st.integers(1, 7),
    inputs=st.integers(1, 7),
    square=st.booleans(),
    strength=STRENGTHS,
    data=st.data(),
)
def test_ablated_weights_do_what_ablate_does_to_their_outputs(
    kind: str, seed: int, d: int, inputs: int, square: bool, strength: float, data: st.DataObject
) -> None:
    """On every axis d_model can be, square tensors included: new weights = old weights, then ablate."""
    letters, axis, formula = MAPS[kind]
    inputs = d if square else inputs
    sizes = {"o": d, "i": inputs, "e": d if square else 3}
    basis = basis_of(seed, data.draw(st.integers(1, min(d, 3))), d)
    weight = gaussian(seed + 1, *(sizes[letter] for letter in letters))
    given_to_it = [gaussian(seed + 2 + n, 4, sizes[part[1]]) for n, part in enumerate(formula.split("->")[0].split(",")[1:])]
    before = torch.einsum(formula, weight, *given_to_it)
    edited = ablated(weight, axis, basis, basis, strength)
    assert edited.shape == weight.shape
    torch.testing.assert_close(torch.einsum(formula, edited, *given_to_it), ablate(basis, strength)(before), rtol=0, atol=1e-11)


@SETTINGS
@given(seed=SEEDS, d=st.integers(1, 7), k=st.integers(1, 3), strength=STRENGTHS)
def test_ablated_weight_and_bias_are_a_layer_whose_output_is_ablated(seed: int, d: int, k: int, strength: float) -> None:
    """A bias is a weight with one axis: without editing it the component would come back."""
    basis = basis_of(seed, min(k, d), d)
    layer = torch.nn.Linear(5, d, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(gaussian(seed + 1, d, 5))
        layer.bias.copy_(gaussian(seed + 2, d))
        x = gaussian(seed + 3, 4, 5)
        before = layer(x)
        layer.weight.copy_(ablated(layer.weight, 0, basis, basis, strength))
        layer.bias.copy_(ablated(layer.bias, 0, basis, basis, strength))
        torch.testing.assert_close(layer(x), ablate(basis, strength)(before), rtol=0, atol=1e-12)


@SETTINGS
@given(seed=SEEDS, d=st.integers(2, 7), k=st.integers(1, 3), strength=STRENGTHS)
def test_ablated_reads_one_basis_and_writes_another(seed: int, d: int, k: int, strength: float) -> None:
    """Outputs become y - s sum_i (read_i . y) write_i: the oblique edit of a direction that reads and writes apart."""
    read, write = gaussian(seed, k, d), gaussian(seed + 1, k, d)
    weight, x = gaussian(seed + 2, d, 3), gaussian(seed + 3, 4, 3)
    expected = slow_rows(x @ weight.T, read, -strength * write, torch.zeros(d, dtype=torch.float64))
    torch.testing.assert_close(x @ ablated(weight, 0, write, read, strength).T, expected, rtol=0, atol=1e-11)


def test_ablated_leaves_its_input_alone() -> None:
    """What is edited is a copy, also at strength zero, so that a tied weight keeps its values."""
    weight, basis = gaussian(0, 5, 5), basis_of(1, 2, 5)
    kept = weight.clone()
    torch.testing.assert_close(ablated(weight, 0, basis, basis, 0.0), kept, rtol=0, atol=0)
    ablated(weight, 1, basis, basis, 1.0)
    assert torch.equal(weight, kept)
