"""Edits against the textbook, at run time and in weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from demeanor.algebra.edits import Edit, ablate, add, clamp, compose, edited, oblique, rotate, scale, transport
from demeanor.algebra.schedule import triangular

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
    made = ablate(basis)(x)
    tolerance = TOLERANCE[dtype] * 1000
    assert float((made @ basis.T).abs().max()) < tolerance
    torch.testing.assert_close(made @ rest.T, x @ rest.T, rtol=0, atol=tolerance)


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
def test_edited_weights_do_what_ablate_does_to_their_outputs(
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
    made = edited(weight, axis, ablate(basis, strength))
    assert made.shape == weight.shape
    torch.testing.assert_close(torch.einsum(formula, made, *given_to_it), ablate(basis, strength)(before), rtol=0, atol=1e-11)


@SETTINGS
@given(seed=SEEDS, d=st.integers(1, 7), k=st.integers(1, 3), strength=STRENGTHS)
def test_edited_weight_and_bias_are_a_layer_whose_output_is_ablated(seed: int, d: int, k: int, strength: float) -> None:
    """A bias is a weight with one axis: without editing it the component would come back."""
    basis = basis_of(seed, min(k, d), d)
    layer = torch.nn.Linear(5, d, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(gaussian(seed + 1, d, 5))
        layer.bias.copy_(gaussian(seed + 2, d))
        x = gaussian(seed + 3, 4, 5)
        before = layer(x)
        layer.weight.copy_(edited(layer.weight, 0, ablate(basis, strength)))
        layer.bias.copy_(edited(layer.bias, 0, ablate(basis, strength)))
        torch.testing.assert_close(layer(x), ablate(basis, strength)(before), rtol=0, atol=1e-12)


@SETTINGS
@given(seed=SEEDS, d=st.integers(2, 7), k=st.integers(1, 3), strength=STRENGTHS)
def test_edited_reads_one_basis_and_writes_another(seed: int, d: int, k: int, strength: float) -> None:
    """Outputs become y - s sum_i (read_i . y) write_i: the oblique edit of a direction that reads and writes apart."""
    read, write = gaussian(seed, k, d), gaussian(seed + 1, k, d)
    weight, x = gaussian(seed + 2, d, 3), gaussian(seed + 3, 4, 3)
    expected = slow_rows(x @ weight.T, read, -strength * write, torch.zeros(d, dtype=torch.float64))
    torch.testing.assert_close(
        x @ edited(weight, 0, Edit(read, -strength * write, torch.zeros(d, dtype=torch.float64))).T, expected, rtol=0, atol=1e-11
    )


def test_edited_leaves_its_input_alone() -> None:
    """What is edited is a copy, also at strength zero, so that a tied weight keeps its values."""
    weight, basis = gaussian(0, 5, 5), basis_of(1, 2, 5)
    kept = weight.clone()
    torch.testing.assert_close(edited(weight, 0, ablate(basis, 0.0)), kept, rtol=0, atol=0)
    edited(weight, 1, ablate(basis))
    assert torch.equal(weight, kept)


def outer(u: Tensor, v: Tensor) -> Tensor:
    return u[:, None] * v[None]


@SETTINGS
@given(seed=SEEDS, shape_rank=shapes(), factor=STRENGTHS)
def test_scale_multiplies_components_and_nothing_else(seed: int, shape_rank: tuple[tuple[int, ...], int], factor: float) -> None:
    """x (I + (g - 1) sum_i r_i r_i^T), as a whole matrix."""
    shape, k = shape_rank
    d = shape[-1]
    basis, x = basis_of(seed, k, d), gaussian(seed + 1, *shape)
    matrix = torch.eye(d, dtype=torch.float64) + (factor - 1) * sum(outer(r, r) for r in basis)
    torch.testing.assert_close(scale(basis, factor)(x), x @ matrix, rtol=0, atol=1e-12)
    torch.testing.assert_close(scale(basis, factor)(x), ablate(basis, 1 - factor)(x), rtol=0, atol=1e-12)


@SETTINGS
@given(seed=SEEDS, d=st.integers(2, 8), degrees=st.floats(-360, 360))
def test_rotate_turns_the_first_vector_into_the_second_and_keeps_lengths(seed: int, d: int, degrees: float) -> None:
    """The textbook's rotation in the plane of u and v: u -> cos u + sin v, v -> cos v - sin u, everything orthogonal stays."""
    everything, x = basis_of(seed, d, d), gaussian(seed + 1, 5, d)
    u, v = everything[0], everything[1]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    edit = rotate(everything[:2], degrees)
    torch.testing.assert_close(edit(u), cos * u + sin * v, rtol=0, atol=1e-12)
    torch.testing.assert_close(edit(v), cos * v - sin * u, rtol=0, atol=1e-12)
    torch.testing.assert_close(edit(everything[2:]), everything[2:], rtol=0, atol=1e-12)
    torch.testing.assert_close(edit(x).norm(dim=-1), x.norm(dim=-1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rotate(everything[:2], -degrees)(edit(x)), x, rtol=0, atol=1e-11)


def test_a_rotation_needs_a_plane() -> None:
    with pytest.raises(ValueError, match="two orthonormal rows, not 1"):
        rotate(basis_of(0, 1, 4), 90.0)


@SETTINGS
@given(seed=SEEDS, shape_rank=shapes())
def test_clamp_holds_components_whatever_they_were(seed: int, shape_rank: tuple[tuple[int, ...], int]) -> None:
    """x - sum (x.r_i) r_i + sum c_i r_i: every component is c_i afterwards, the rest is as before."""
    shape, k = shape_rank
    d = shape[-1]
    everything, x, held = basis_of(seed, d, d), gaussian(seed + 1, *shape), gaussian(seed + 2, k)
    made = clamp(everything[:k], held)(x)
    torch.testing.assert_close(made @ everything[:k].T, held.expand(*shape[:-1], k), rtol=0, atol=1e-12)
    torch.testing.assert_close(made @ everything[k:].T, x @ everything[k:].T, rtol=0, atol=1e-12)


@SETTINGS
@given(seed=SEEDS, d=st.integers(3, 8), k=st.integers(1, 2), strength=STRENGTHS)
def test_oblique_removes_what_is_read_along_what_is_written(seed: int, d: int, k: int, strength: float) -> None:
    """With one row, V = w / (w.u) and M = -s u; with any, (1 - s) of what w reads is left, and x moves in span(u) only."""
    w, u, x = gaussian(seed, k, d), gaussian(seed + 1, k, d), gaussian(seed + 2, 5, d)
    u = u + 2 * w  # not orthogonal to each other, so that the gap can be closed
    made = oblique(w, u, strength)(x)
    torch.testing.assert_close(made @ w.T, (1 - strength) * (x @ w.T), rtol=0, atol=1e-9)
    orthogonal = torch.linalg.svd(u, full_matrices=True).Vh[k:]
    torch.testing.assert_close((made - x) @ orthogonal.T, torch.zeros(5, d - k, dtype=torch.float64), rtol=0, atol=1e-9)
    if k == 1:
        torch.testing.assert_close(made, x - strength * outer(x @ w[0] / (w[0] @ u[0]), u[0]), rtol=0, atol=1e-11)


def test_oblique_along_its_own_basis_is_ablation() -> None:
    basis, x = basis_of(0, 3, 7), gaussian(1, 5, 7)
    torch.testing.assert_close(oblique(basis, basis, 0.7)(x), ablate(basis, 0.7)(x), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="do not fit"):
        oblique(basis, basis[:2])


@st.composite
def any_edit(draw: st.DrawFn, d: int) -> Edit:
    """One of every constructor, of any rank and strength."""
    seed, strength = draw(SEEDS), draw(STRENGTHS)
    basis = basis_of(seed, draw(st.integers(1, min(d, 4))), d)
    made = {
        "ablate": lambda: ablate(basis, strength),
        "scale": lambda: scale(basis, strength),
        "rotate": lambda: rotate(basis_of(seed, 2, d), 90 * strength),
        "add": lambda: add(strength * basis[0]),
        "clamp": lambda: clamp(basis, gaussian(seed + 1, len(basis))),
        "transport": lambda: transport(basis, gaussian(seed + 3, *basis.shape), gaussian(seed + 1, len(basis))),
        "oblique": lambda: oblique(basis, basis + 0.3 * basis_of(seed + 2, len(basis), d), strength),
    }
    return made[draw(st.sampled_from(sorted(made)))]()


@SETTINGS
@given(data=st.data(), d=st.integers(2, 8), seed=SEEDS)
def test_two_successive_edits_are_the_composed_one(data: st.DataObject, d: int, seed: int) -> None:
    """Whatever they are, in this order; and three, in either bracketing."""
    one, two, three = (data.draw(any_edit(d)) for _ in range(3))
    x = gaussian(seed, 5, d)
    torch.testing.assert_close(compose(one, two)(x), two(one(x)), rtol=1e-12, atol=1e-12)
    assert compose(one, two).rank == one.rank + two.rank
    left, right = compose(compose(one, two), three), compose(one, compose(two, three))
    torch.testing.assert_close(left(x), three(two(one(x))), rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(right(x), left(x), rtol=1e-12, atol=1e-11)


def test_the_order_of_two_edits_matters() -> None:
    """Adding and then ablating leaves nothing along r; ablating and then adding leaves what was added."""
    basis, x = basis_of(0, 1, 6), gaussian(1, 4, 6)
    first, second = ablate(basis), add(3 * basis[0])
    torch.testing.assert_close(compose(second, first)(x) @ basis[0], torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(compose(first, second)(x) @ basis[0], torch.full((4,), 3.0, dtype=torch.float64), rtol=0, atol=1e-12)


def test_an_offset_cannot_be_written_into_a_weight() -> None:
    with pytest.raises(ValueError, match="offset cannot be written"):
        edited(gaussian(0, 4, 4), 0, add(torch.ones(4, dtype=torch.float64)))


def test_a_triangular_kernel_peaks_falls_and_ends() -> None:
    assert triangular(5, peak=1.0, position=0.5, half_width=0.5, edge=0.2) == pytest.approx((0.2, 0.6, 1.0, 0.6, 0.2))
    assert triangular(5, peak=0.8, position=1.0, half_width=0.5) == pytest.approx((0.0, 0.0, 0.0, 0.4, 0.8))
    assert triangular(4, peak=1.0, position=0.0, half_width=9.0, edge=1.0) == pytest.approx((1.0,) * 4)
    assert triangular(1) == pytest.approx((0.0,))
    with pytest.raises(ValueError, match="half-width is positive"):
        triangular(4, half_width=0.0)
