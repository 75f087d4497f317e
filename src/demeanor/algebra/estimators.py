"""Richer estimators of directions than the difference of means. algorithms.md, section 3.

Pure functions of class values [n, d_model], float64 inside. Those of this page that need pairs take row i of one class with
row i of the other; the sign of every direction points from `lacks` to `shows`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bases import orthonormal, unit

LEAST_SPREAD = 1e-6  # of the variance of the wider class: what lies in one point is stretched a thousand times at most
RIDGE = 0.1  # of what `lacks` explains of a mean difference, in units of their mean spread


def paired_pca(shows: Tensor, lacks: Tensor, rank: int = 1) -> Tensor:
    """Right singular vectors of the pair differences, not centred: [rank, d].

    Centring would take the mean difference away, which is what the pairs have in common (Zou et al. 2023 use random signs instead).
    Raises ValueError when there are not as many rows of one class as of the other.
    """
    if len(shows) != len(lacks):
        raise ValueError(f"{len(shows)} and {len(lacks)} rows are no pairs")
    return _oriented(_right_singular(shows.double() - lacks.double(), rank), shows, lacks)


def pooled_pca(shows: Tensor, lacks: Tensor, rank: int = 1) -> Tensor:
    """Principal components of both classes together, centred at the mean of the class means: [rank, d]."""
    shows, lacks = shows.double(), lacks.double()
    # Each class weighs the same however many rows it has.
    centre = (shows.mean(0) + lacks.mean(0)) / 2
    rows = torch.cat([(shows - centre) / len(shows) ** 0.5, (lacks - centre) / len(lacks) ** 0.5])
    return _oriented(_right_singular(rows, rank), shows, lacks)


def median_difference(shows: Tensor, lacks: Tensor) -> Tensor:
    """unit of the difference of geometric medians, which a few outlying prompts do not move: [d]."""
    return unit(geometric_median(shows) - geometric_median(lacks))


def geometric_median(values: Tensor, tolerance: float = 1e-10, repeats: int = 1000) -> Tensor:
    """The point with the least sum of distances to values [n, d] (Weiszfeld; Vardi and Zhang 2000 where it meets a row)."""
    values = values.double()
    point = values.mean(0)
    scale = (values - point).norm(dim=1).mean().clamp_min(torch.finfo(torch.float64).tiny)
    for _ in range(repeats):
        apart = values - point
        distance = apart.norm(dim=1)
        here = distance <= 1e-14 * scale
        weights = torch.where(here, 0.0, 1 / distance.clamp_min(torch.finfo(torch.float64).tiny))
        if not weights.any():
            return point
        step = (weights[:, None] * apart).sum(0) / weights.sum()
        # At a row of the data the pull of the others must exceed the weight of the row itself.
        pull = (weights[:, None] * apart).sum(0).norm()
        step = step * (1 - here.sum() / pull).clamp_min(0) if here.any() else step
        point = point + step
        if step.norm() <= tolerance * scale:
            break
    return point


def clusters(values: Tensor, count: int, repeats: int = 50) -> Tensor:
    """Which of `count` groups each row of values [n, d] belongs to: [n], from 0 (Lloyd, from the rows that lie farthest apart).

    The first group starts at the row nearest to the mean, so the same rows always give the same groups. A group may lose all of its
    rows and is then left out, so that groups are numbered without gaps.
    Raises ValueError where there are fewer rows than groups.
    """
    if not 1 <= count <= len(values):
        raise ValueError(f"{len(values)} rows make no {count} groups")
    values = values.double()
    starts = [int((values - values.mean(0)).norm(dim=1).argmin())]
    while len(starts) < count:
        starts.append(int(torch.cdist(values, values[starts]).amin(1).argmax()))
    centres = values[starts]
    labels = torch.cdist(values, centres).argmin(1)
    for _ in range(repeats):
        left = labels.unique()
        centres = torch.stack([values[labels == label].mean(0) for label in left])
        again = torch.cdist(values, centres).argmin(1)
        if torch.equal(again, labels) and len(left) == int(labels.max()) + 1:
            break
        labels = again
    return labels


def spectral_residual(shows: Tensor, lacks: Tensor, ridge: float = RIDGE) -> Tensor:
    """unit of the mean difference r less what the rows A [m, d] of `lacks` explain of it: r - A^T (A A^T + l I)^-1 A r: [d].

    l is `ridge` times the mean of the squared singular values of A. So directions along which `lacks` prompts lie far out are hardly edited, and those
    along which they do not lie at all are edited as before (surgical refusal ablation, arXiv 2601.08489, with prompts in place of concepts).
    """
    gap = shows.double().mean(0) - lacks.double().mean(0)
    _, values, basis = torch.linalg.svd(lacks.double(), full_matrices=False)
    squares = values.square()
    explained = squares / (squares + ridge * squares.mean()).clamp_min(torch.finfo(torch.float64).tiny)
    left: Tensor = gap - basis.T @ (explained * (basis @ gap))
    return unit(left)


def whitened(shows: Tensor, lacks: Tensor) -> tuple[Tensor, Tensor]:
    """The reader of linear discriminant analysis, with shrinkage, and what it is to be written back along: (read, write) [d].

    read = unit(C^-1 (m+ - m-)) of the pooled within-class covariance, shrunk as Ledoit and Wolf (2004) do; write = m+ - m-.
    The oblique map along both takes the gap of the means away, which a projection along the reader would not.
    """
    shows, lacks = shows.double(), lacks.double()
    gap = shows.mean(0) - lacks.mean(0)
    within = torch.cat([shows - shows.mean(0), lacks - lacks.mean(0)])
    return unit(_solve_shrunk(within, gap)), gap


def gaussian_transport(shows: Tensor, lacks: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The optimal map of the normal distribution of shows [n, d] onto that of lacks [m, d] in a plane of leading directions: (basis, change, offset).

    basis [k, d] is orthonormal, k at most rank: the mean difference, then the principal components of both classes. With c = x basis^T the map
    is x + c change + offset basis; change [k, d], offset [k] (Gelbrich 1990; arXiv 2603.04355). Both covariances are shrunk as Ledoit and Wolf do.
    Raises ValueError where a class has fewer than two rows.
    """
    if min(len(shows), len(lacks)) < 2:
        raise ValueError(f"{len(shows)} and {len(lacks)} rows have no covariance")
    shows, lacks = shows.double(), lacks.double()
    gap = shows.mean(0) - lacks.mean(0)
    basis = orthonormal(torch.cat([gap[None], pooled_pca(shows, lacks, min(rank, *shows.shape, *lacks.shape))]), tolerance=1e-6)[:rank]
    inside = [rows @ basis.T for rows in (shows, lacks)]
    least = LEAST_SPREAD * max(float(rows.var(0, correction=0).mean()) for rows in inside)
    means, covariances = zip(*(_normal(rows, least) for rows in inside))
    root = _root(covariances[0])
    inverse = torch.linalg.inv(root)
    carried = inverse @ _root(root @ covariances[1] @ root) @ inverse
    return basis, (carried - torch.eye(len(basis), dtype=torch.float64)) @ basis, means[1] - means[0] @ carried


def _normal(rows: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Mean [k] and shrunk covariance [k, k] of rows [n, k]; its eigenvalues are not below `least`, and not 0."""
    centred = rows - rows.mean(0)
    share, size = shrinkage(centred)
    covariance = (1 - share) * centred.T @ centred / len(rows)
    return rows.mean(0), covariance + max(share * size, least, torch.finfo(torch.float64).tiny) * torch.eye(rows.shape[1], dtype=torch.float64)


def _root(matrix: Tensor) -> Tensor:
    """The symmetric root of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root


def shrinkage(rows: Tensor) -> tuple[float, float]:
    """(share, scale) of Ledoit and Wolf: C = (1 - share) X^T X / n + share * scale * I of centred rows X [n, d]."""
    rows = rows.double()
    n, d = rows.shape
    squares = rows.square().sum(1)
    scale = squares.sum() / n / d
    # |S|^2 and the spread of the rows' own outer products come from n x n products: d x d ones are never formed.
    gram = rows @ rows.T
    of_covariance = gram.square().sum() / n**2
    distance = of_covariance - d * scale**2
    noise = (squares.square().sum() / n - of_covariance) / n
    share = float((noise.clamp_min(0) / distance).clamp(max=1)) if distance > 0 else 1.0
    return share, float(scale)


def most_gaining(form: Tensor, basis: Tensor, count: int) -> Tensor:
    """Unit vectors orthogonal to the rows of basis [k, d] along which v^T A v is largest, A [d, d] symmetric: [at most count, d].

    Eigenvectors of A between projections onto the complement of the basis, of positive eigenvalue, largest first.
    """
    away = torch.eye(len(form), dtype=torch.float64) - basis.double().T @ basis.double()
    values, vectors = torch.linalg.eigh(away @ form.double() @ away)
    order = values.argsort(descending=True)[:count]
    most: Tensor = vectors.T[order[values[order] > 1e-12 * values.abs().max()]]
    return most


def _solve_shrunk(rows: Tensor, gap: Tensor) -> Tensor:
    """C^-1 gap of the shrunk covariance of centred rows, through their singular vectors."""
    share, scale = shrinkage(rows)
    _, values, basis = torch.linalg.svd(rows, full_matrices=False)
    ridge = max(share * scale, 1e-12 * max(scale, torch.finfo(torch.float64).tiny))
    along = basis @ gap
    inside = along / ((1 - share) * values.square() / len(rows) + ridge)
    solved: Tensor = basis.T @ inside + (gap - basis.T @ along) / ridge
    return solved


def _right_singular(rows: Tensor, rank: int) -> Tensor:
    if not 1 <= rank <= min(rows.shape):
        raise ValueError(f"rank {rank} is not between 1 and {min(rows.shape)}")
    vectors: Tensor = torch.linalg.svd(rows, full_matrices=False).Vh[:rank]
    return vectors


def _oriented(basis: Tensor, shows: Tensor, lacks: Tensor) -> Tensor:
    along = basis @ (shows.double().mean(0) - lacks.double().mean(0))
    return orthonormal(torch.where(along < 0, -1.0, 1.0)[:, None] * basis)
