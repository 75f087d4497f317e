"""What tells a direction from chance: AUROC, separation, split halves, permutations."""

from __future__ import annotations

import math
import statistics
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from demeanor.algebra.directions import auroc, permutation_p, separation, split_half_cosine

SETTINGS = settings(derandomize=True, deadline=None, max_examples=40)
SEEDS = st.integers(0, 2**32 - 1)


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counted_auroc(positive: list[float], negative: list[float]) -> float:
    """Every pair, one by one."""
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in positive for b in negative)
    return wins / (len(positive) * len(negative))


def plain_separation(shows: list[float], lacks: list[float]) -> float:
    """Gap of the means over the root of the mean squared distance to the own class mean."""
    middle_shows, middle_lacks = statistics.fmean(shows), statistics.fmean(lacks)
    squares = [(x - middle_shows) ** 2 for x in shows] + [(x - middle_lacks) ** 2 for x in lacks]
    return (middle_shows - middle_lacks) / math.sqrt(math.fsum(squares) / len(squares))


@SETTINGS
@given(
    seed=SEEDS,
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    columns=st.integers(1, 4),
    levels=st.sampled_from([1, 2, 5, 1000]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.int64]),
)
def test_auroc_counts_pairs(seed: int, n: int, m: int, columns: int, levels: int, dtype: torch.dtype) -> None:
    """Per column, ties counting half, from all values alike to none alike."""
    rng = torch.Generator().manual_seed(seed)
    positive = torch.randint(-levels, levels, (n, columns), generator=rng).to(dtype)
    negative = torch.randint(-levels, levels, (m, columns), generator=rng).to(dtype)
    expected = [counted_auroc(positive[:, c].tolist(), negative[:, c].tolist()) for c in range(columns)]
    assert auroc(positive, negative).tolist() == pytest.approx(expected, abs=1e-12)


def test_auroc_of_values_without_columns_and_with_two_of_them() -> None:
    """[n] gives one number, [n, layer, position] one per place."""
    assert float(auroc(torch.tensor([2.0, 3.0, 1.0]), torch.tensor([1.0, 0.0]))) == pytest.approx(5.5 / 6)
    positive, negative = gaussian(0, 5, 2, 3).round(), gaussian(1, 7, 2, 3).round()
    found = auroc(positive, negative)
    assert found.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            assert float(found[i, j]) == pytest.approx(counted_auroc(positive[:, i, j].tolist(), negative[:, i, j].tolist()))


@SETTINGS
@given(seed=SEEDS, n=st.integers(2, 12), m=st.integers(2, 12), columns=st.integers(1, 4), gap=st.sampled_from([-50.0, -1.0, 0.0, 2.0]))
def test_separation_is_the_gap_in_pooled_deviations(seed: int, n: int, m: int, columns: int, gap: float) -> None:
    """Signed, per column, each class pooled by its size, however unequal the sizes."""
    shows, lacks = gaussian(seed, n, columns) + gap, 3 * gaussian(seed + 1, m, columns)
    expected = [plain_separation(shows[:, c].tolist(), lacks[:, c].tolist()) for c in range(columns)]
    assert separation(shows, lacks).tolist() == pytest.approx(expected, rel=1e-9)


def test_separation_of_identical_constants_is_zero() -> None:
    """A channel that never moves separates nothing, and is no NaN."""
    assert separation(torch.full((4, 2), 2.0), torch.full((5, 2), 2.0)).tolist() == [0.0, 0.0]


def test_split_half_cosine_tells_clear_sites_from_noise() -> None:
    """In one call: near 1 where the classes differ, near 0 where they do not, per site."""
    shows, lacks = gaussian(0, 60, 3, 64), gaussian(1, 60, 3, 64)
    shows[:, 0] += 5.0
    shows[:, 2] -= 5.0
    cosine = split_half_cosine(shows, lacks, torch.Generator().manual_seed(0))
    assert cosine.shape == (3,)
    assert float(cosine[0]) > 0.99
    assert float(cosine[2]) > 0.99
    assert abs(float(cosine[1])) < 0.3


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_split_half_cosine_is_the_share_of_signal(share: float) -> None:
    """|delta|^2 / (|delta|^2 + 4 d / n) at unit noise and n rows a class: the halves share no row and together use all."""
    n, d = 64, 4096
    noise = 4 * d / n
    delta = math.sqrt(share / (1 - share) * noise / d)
    for size in (n, n + 1):  # an odd number of rows loses none
        cosine = split_half_cosine(gaussian(2, size, 1, d) + delta, gaussian(3, size, 1, d), torch.Generator().manual_seed(1))
        assert float(cosine[0]) == pytest.approx(share, abs=0.04)


def largest_separation(train: Tensor, is_shows: Tensor, held_out: Tensor, held_is_shows: Tensor) -> float:
    """Fit the mean difference at each site, project the held-out rows on it, take the largest d'."""
    found = []
    for site in range(train.shape[1]):
        gap = train[is_shows, site].mean(0) - train[~is_shows, site].mean(0)
        along = held_out[:, site] @ (gap / gap.norm())
        found.append(plain_separation(along[held_is_shows].tolist(), along[~held_is_shows].tolist()))
    return max(found)


def relabelled(labels: Tensor) -> list[Tensor]:
    """Every labelling with as many `shows` as `labels` has."""
    count = len(labels)
    return [torch.tensor([row in chosen for row in range(count)]) for chosen in combinations(range(count), int(labels.sum()))]


def exact_p(train: Tensor, is_shows: Tensor, held_out: Tensor, held_is_shows: Tensor) -> float:
    """The share of all pairs of labellings that separate at least as well as the true one; itself among them."""
    observed = largest_separation(train, is_shows, held_out, held_is_shows)
    found = [largest_separation(train, a, held_out, b) for a in relabelled(is_shows) for b in relabelled(held_is_shows)]
    return sum(value >= observed - 1e-9 * abs(observed) for value in found) / len(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "gap", "sizes"), [(0, 0.0, (3, 3)), (1, 0.7, (3, 3)), (2, 1.5, (2, 4)), (3, 0.0, (4, 2)), (4, -0.8, (3, 3))]
)
def test_permutation_p_is_the_share_of_all_relabellings(seed: int, gap: float, sizes: tuple[int, int]) -> None:
    """On six rows a set every labelling can be tried: sampling 2,000 of them comes within four standard errors."""
    labels = torch.tensor([True] * sizes[0] + [False] * sizes[1])
    train, held_out = gaussian(seed, 6, 3, 4), gaussian(seed + 100, 6, 3, 4)
    train[labels] += gap
    held_out[labels] += abs(gap)  # a negative gap: the direction points the wrong way on held-out rows
    expected = exact_p(train, labels, held_out, labels)
    found = permutation_p(train, labels, held_out, labels, torch.Generator().manual_seed(seed), repeats=2000)
    assert found == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 2000) + 2 / 225)


@pytest.mark.slow
def test_permutation_p_counts_relabellings_that_tie() -> None:
    """With two rows a class 2 of 36 relabellings are the true one: however clear the classes, p is at least about 1/18."""
    labels = torch.tensor([True, True, False, False])
    found = []
    for seed in range(30):
        train, held_out = (gaussian(seed + shift, 4, 2, 5) + 20 * labels[:, None, None] for shift in (0, 100))
        found.append(permutation_p(train, labels, held_out, labels, torch.Generator().manual_seed(seed)))
    assert min(found) > 0.03


def test_permutation_p_does_not_favour_noise() -> None:
    """Choosing the best of twelve sites is part of the null: over 40 data sets without a difference p is about uniform."""
    labels = torch.arange(24) % 2 == 0
    found = []
    for seed in range(40):
        train, held_out = gaussian(seed, 24, 12, 8), gaussian(seed + 1000, 24, 12, 8)
        found.append(permutation_p(train, labels, held_out, labels, torch.Generator().manual_seed(seed), repeats=60))
    assert sum(p <= 0.05 for p in found) <= 6
    assert 0.35 < statistics.fmean(found) < 0.65
    assert 10 <= sum(p <= 0.5 for p in found) <= 30


def test_permutation_p_finds_one_real_site_among_noise() -> None:
    """As small as the repeats allow when the held-out rows bear the difference out, and not when they bear out none."""
    labels = torch.arange(40) < 20
    train, held_out = gaussian(0, 40, 6, 16), gaussian(1, 40, 6, 16)
    train[labels, 3] += 2.0
    missed = permutation_p(train, labels, held_out, labels, torch.Generator().manual_seed(0), repeats=250)
    held_out[labels, 3] += 2.0
    found = permutation_p(train, labels, held_out, labels, torch.Generator().manual_seed(0), repeats=250)
    assert found == pytest.approx(1 / 251)
    assert missed > 0.05
