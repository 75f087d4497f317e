"""Estimators against slow references and what each of them is for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from demeanor.algebra import bases, directions, edits, estimators

SETTINGS = settings(derandomize=True, deadline=None, max_examples=40)
SHAPES = {"n": st.integers(3, 30), "m": st.integers(3, 30), "d": st.integers(2, 24), "seed": st.integers(0, 10**6)}


def classes(seed: int, n: int, m: int, d: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=rng, dtype=torch.float64)
    gap = 2 * torch.randn(d, generator=rng, dtype=torch.float64)
    shows, lacks = (torch.randn(rows, d, generator=rng, dtype=torch.float64) @ mix for rows in (n, m))
    return shows + gap, lacks


@SETTINGS
@given(**SHAPES, rank=st.integers(1, 3))
def test_paired_pca_is_the_eigenbasis_of_uncentred_differences(n: int, m: int, d: int, seed: int, rank: int) -> None:
    shows, lacks = classes(seed, n, n, d)
    rank = min(rank, n, d)
    basis = estimators.paired_pca(shows, lacks, rank)
    total = sum(torch.outer(a - b, a - b) for a, b in zip(shows, lacks))
    assert torch.allclose(basis @ basis.T, torch.eye(rank, dtype=torch.float64), atol=1e-9)
    best = torch.linalg.eigvalsh(total)[-rank:].sum()
    assert torch.allclose(torch.trace(basis @ total @ basis.T), best, rtol=1e-9)
    assert bool((basis @ (shows.mean(0) - lacks.mean(0)) >= -1e-9).all())


def test_paired_pca_sees_through_what_pairs_share() -> None:
    """Topics differ far more than the behaviour: pairs cancel them, pooled components do not."""
    rng = torch.Generator().manual_seed(1)
    behaviour = bases.unit(torch.randn(32, generator=rng, dtype=torch.float64))
    topics = 10 * torch.randn(60, 32, generator=rng, dtype=torch.float64)
    noise = 0.1 * torch.randn(2, 60, 32, generator=rng, dtype=torch.float64)
    shows, lacks = topics + behaviour + noise[0], topics - behaviour + noise[1]
    assert float(estimators.paired_pca(shows, lacks)[0] @ behaviour) > 0.99
    assert abs(float(estimators.pooled_pca(shows, lacks)[0] @ behaviour)) < 0.5


@SETTINGS
@given(**SHAPES, rank=st.integers(1, 3))
def test_pooled_pca_is_the_eigenbasis_of_the_mean_class_scatter(n: int, m: int, d: int, seed: int, rank: int) -> None:
    shows, lacks = classes(seed, n, m, d)
    rank = min(rank, d)
    basis = estimators.pooled_pca(shows, lacks, rank)
    centre = (shows.mean(0) + lacks.mean(0)) / 2
    total = sum(torch.stack([torch.outer(x - centre, x - centre) for x in rows]).mean(0) for rows in (shows, lacks))
    assert torch.allclose(torch.trace(basis @ total @ basis.T), torch.linalg.eigvalsh(total)[-rank:].sum(), rtol=1e-9)


@SETTINGS
@given(**SHAPES, ridge=st.sampled_from([1e-3, 0.1, 10.0]))
def test_the_spectral_residual_is_the_mean_difference_less_its_ridge_fit(n: int, m: int, d: int, seed: int, ridge: float) -> None:
    shows, lacks = classes(seed, n, m, d)
    gap = shows.mean(0) - lacks.mean(0)
    rows = min(m, d)
    penalty = ridge * lacks.square().sum() / rows
    fit = lacks.T @ torch.linalg.solve(lacks @ lacks.T + penalty * torch.eye(m, dtype=torch.float64), lacks @ gap)
    assert torch.allclose(estimators.spectral_residual(shows, lacks, ridge), bases.unit(gap - fit), atol=1e-7)


def test_the_spectral_residual_hardly_moves_what_is_to_stay() -> None:
    """Where the gap lies for the most part along what varies in `lacks`, ablating it moves them much less than ablating the mean difference does."""
    rng = torch.Generator().manual_seed(0)
    topic, behaviour = torch.eye(16, dtype=torch.float64)[:2]
    lacks = 8 * torch.randn(60, 1, generator=rng, dtype=torch.float64) * topic + 0.1 * torch.randn(60, 16, generator=rng, dtype=torch.float64)
    shows = lacks + 2 * topic + behaviour
    plain, residual = bases.unit(shows.mean(0) - lacks.mean(0)), estimators.spectral_residual(shows, lacks)
    moved = [float((edits.ablate(r[None])(lacks) - lacks).square().mean().sqrt()) for r in (plain, residual)]
    assert moved[1] < 0.1 * moved[0]
    assert float(residual @ behaviour) > 0.9


@SETTINGS
@given(**SHAPES, rank=st.integers(1, 6))
def test_a_transport_carries_one_normal_distribution_onto_the_other(n: int, m: int, d: int, seed: int, rank: int) -> None:
    """Mean onto mean and covariance onto covariance in its components, by a positive map (so no other moves less); what is across them stays."""
    shows, lacks = classes(seed, n, m, d)
    basis, change, offset = estimators.gaussian_transport(shows, lacks, rank)
    assert torch.allclose(basis @ basis.T, torch.eye(len(basis), dtype=torch.float64), atol=1e-9)
    edit = edits.transport(basis, change, offset)
    moved = edit(shows)
    assert torch.allclose((moved @ basis.T).mean(0), (lacks @ basis.T).mean(0), atol=1e-6)
    across = torch.eye(d, dtype=torch.float64) - basis.T @ basis
    assert torch.allclose(moved @ across, shows @ across, atol=1e-6)
    carried = change @ basis.T + torch.eye(len(basis), dtype=torch.float64)
    assert torch.allclose(carried, carried.T, rtol=1e-5, atol=1e-6 * float(carried.abs().max()))
    assert float(torch.linalg.eigvalsh((carried + carried.T) / 2).min()) > 0
    inside = [rows @ basis.T for rows in (shows, lacks)]
    least = 1e-6 * max(float(rows.var(0, correction=0).mean()) for rows in inside)
    spread = [(1 - share) * torch.cov(rows.T, correction=0).reshape(len(basis), -1) + max(share * size, least) * torch.eye(len(basis), dtype=torch.float64)
              for rows in inside for share, size in [estimators.shrinkage(rows - rows.mean(0))]]  # fmt: skip
    assert torch.allclose(carried @ spread[0] @ carried.T, spread[1], rtol=1e-4, atol=1e-6 * float(spread[1].abs().max()))


def test_a_transport_of_one_component_moves_the_mean_along_the_gap() -> None:
    shows, lacks = classes(3, 40, 50, 8)
    basis, change, _ = estimators.gaussian_transport(shows, lacks, 1)
    assert float(basis[0] @ bases.unit(shows.mean(0) - lacks.mean(0))) == pytest.approx(1)
    along = [rows @ basis[0] for rows in (shows, lacks)]
    ratio = float(along[1].std(correction=0) / along[0].std(correction=0))
    assert float(1 + change[0] @ basis[0]) == pytest.approx(ratio, rel=0.05)  # but for the shrinkage
    same = estimators.gaussian_transport(shows[:1].expand(40, -1), lacks, 4)  # all in one point
    assert float(same[1].abs().max()) < 2e3
    with pytest.raises(ValueError, match="no covariance"):
        estimators.gaussian_transport(shows[:1], lacks, 1)


def test_pairs_and_ranks_must_fit() -> None:
    shows, lacks = classes(0, 4, 5, 3)
    with pytest.raises(ValueError, match="no pairs"):
        estimators.paired_pca(shows, lacks)
    with pytest.raises(ValueError, match="rank 4"):
        estimators.pooled_pca(shows, lacks, 4)


@SETTINGS
@given(n=st.integers(1, 12), d=st.integers(1, 6), seed=st.integers(0, 10**6), repeated=st.booleans())
def test_no_point_nearby_is_closer_to_all_than_the_geometric_median(n: int, d: int, seed: int, repeated: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    values = torch.randn(n, d, generator=rng, dtype=torch.float64)
    if repeated:  # more than half of the rows in one place: the median is there
        values[: n // 2 + 1] = values[0].clone()
    median = estimators.geometric_median(values)

    def total(point: Tensor) -> float:
        return float((values - point).norm(dim=1).sum())

    best = total(median)
    for step in (1e-2, 1e-1, 1.0):
        around = median + step * bases.unit(torch.randn(40, d, generator=rng, dtype=torch.float64))
        assert min(map(total, around)) >= best - 1e-7
    if repeated:
        assert torch.allclose(median, values[0], atol=1e-6)


def test_the_median_difference_is_not_moved_by_a_few_outliers() -> None:
    shows, lacks = classes(3, 100, 100, 16)
    clean = directions.mean_difference(shows.mean(0), lacks.mean(0))
    shows[:5] += 1000 * bases.unit(torch.randn(16, generator=torch.Generator().manual_seed(9), dtype=torch.float64))
    assert float(estimators.median_difference(shows, lacks) @ clean) > 0.95
    assert float(directions.mean_difference(shows.mean(0), lacks.mean(0)) @ clean) < 0.6


def slow_shrinkage(rows: Tensor) -> tuple[float, float]:
    """Ledoit and Wolf (2004), lemma 3.2 to 3.4, by their own sums of outer products."""
    n, d = rows.shape
    outer = [torch.outer(row, row) for row in rows]
    covariance = torch.stack(outer).mean(0)
    scale = torch.trace(covariance) / d
    distance = (covariance - scale * torch.eye(d, dtype=torch.float64)).square().sum() / d
    noise = sum((each - covariance).square().sum() / d for each in outer) / n**2
    return float(min(noise, distance) / distance), float(scale)


@SETTINGS
@given(**SHAPES)
def test_the_whitened_reader_solves_the_shrunk_covariance(n: int, m: int, d: int, seed: int) -> None:
    shows, lacks = classes(seed, n, m, d)
    within = torch.cat([shows - shows.mean(0), lacks - lacks.mean(0)])
    share, scale = slow_shrinkage(within)
    assert estimators.shrinkage(within) == pytest.approx((share, scale), rel=1e-7, abs=1e-9)
    covariance = (1 - share) * within.T @ within / len(within) + share * scale * torch.eye(d, dtype=torch.float64)
    expected = bases.unit(torch.linalg.solve(covariance, shows.mean(0) - lacks.mean(0)))
    read, _ = estimators.whitened(shows, lacks)
    assert torch.allclose(read, expected, atol=1e-6)


def test_readers_need_an_oblique_map_to_take_the_gap_away() -> None:
    """Projecting along the reader leaves most of the mean difference; writing back along the gap leaves none."""
    rng = torch.Generator().manual_seed(2)
    d = 48
    mix = torch.diag(torch.logspace(-1.5, 1, d, dtype=torch.float64))
    shows, lacks = (torch.randn(400, d, generator=rng, dtype=torch.float64) @ mix for _ in range(2))
    shows = shows + 1.0
    read, write = estimators.whitened(shows, lacks)
    gap = shows.mean(0) - lacks.mean(0)
    projected = edits.ablate(read[None])
    assert float((projected(shows).mean(0) - projected(lacks).mean(0)).norm() / gap.norm()) > 0.5
    oblique = edits.Edit((read / (read @ write))[None], -write[None], torch.zeros(d, dtype=torch.float64))
    assert float((oblique(shows).mean(0) - oblique(lacks).mean(0)).norm() / gap.norm()) < 1e-12


@SETTINGS
@given(d=st.integers(2, 24), k=st.integers(0, 3), count=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_no_other_vector_off_the_basis_gains_more(d: int, k: int, count: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    form = torch.randn(d, d, generator=rng, dtype=torch.float64)
    form = form + form.T
    basis = bases.orthonormal(torch.randn(min(k, d - 1), d, generator=rng, dtype=torch.float64))
    found = estimators.most_gaining(form, basis, count)
    assert torch.allclose(found @ found.T, torch.eye(len(found), dtype=torch.float64), atol=1e-9)
    assert torch.allclose(found @ basis.T, torch.zeros(len(found), len(basis), dtype=torch.float64), atol=1e-9)
    gains = torch.einsum("nd,de,ne->n", found, form, found)
    assert bool((gains > 0).all())  # nothing that ablation would lose by
    others = bases.unit(bases.reject(torch.randn(200, d, generator=rng, dtype=torch.float64), basis))
    left = bases.reject(others, found[: count - 1]) if len(found) == count else bases.reject(others, found)
    left = left[left.norm(dim=1) > 1e-6]
    most = torch.einsum("nd,de,ne->n", bases.unit(left), form, bases.unit(left)).max() if len(left) else torch.tensor(-1.0)
    assert most <= (gains[-1] if len(found) == count else 0) + 1e-9


@SETTINGS
@given(n=st.integers(1, 20), d=st.integers(1, 6), count=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_every_row_is_in_the_group_whose_mean_is_nearest(n: int, d: int, count: int, seed: int) -> None:
    values = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if count > n:
        with pytest.raises(ValueError, match=f"make no {count} groups"):
            estimators.clusters(values, count)
        return
    labels = estimators.clusters(values, count)
    assert sorted(labels.unique().tolist()) == list(range(int(labels.max()) + 1))
    means = [values[labels == label].mean(0) for label in labels.unique()]
    for row, label in zip(values, labels.tolist()):
        away = [float((row - mean).norm()) for mean in means]
        assert away[label] <= min(away) + 1e-9


def test_groups_that_lie_apart_are_found_however_rows_are_ordered() -> None:
    rng = torch.Generator().manual_seed(3)
    centres = 20 * torch.eye(3, 5, dtype=torch.float64)
    truth = torch.tensor([0, 1, 2] * 7)
    values = centres[truth] + torch.randn(21, 5, generator=rng, dtype=torch.float64)
    for order in (torch.arange(21), torch.randperm(21, generator=rng)):
        labels = estimators.clusters(values[order], 3)
        assert len({(int(a), int(b)) for a, b in zip(truth[order], labels)}) == 3
