"""Estimators of directions, and what tells a direction from chance. algorithms.md, section 3.

Every estimator is a pure function of class means or values; shapes are stated per function. All
arithmetic is float64: sets are small, and split halves of nearly equal means lose digits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from .bases import unit

STEPS = 100  # of Newton's method, of which a probe takes about eight
SETTLED = 1e-9  # largest gradient at the optimum
LEAST_CURVED = 1e-12  # penalty of a bias, in that of a weight: far from the optimum its curvature may vanish


def mean_difference(shows: Tensor, lacks: Tensor) -> Tensor:
    """unit(m+ - m-) of class means [..., d]."""
    return unit(shows - lacks)


def projected(shows: Tensor, lacks: Tensor) -> Tensor:
    """The mean difference minus its part along unit(m-): ablating it leaves the `lacks` mean where it is.

    Zero where nothing is left (less than 1e-3 of it).
    """
    return _without(unit(shows - lacks), unit(lacks))


def guard_orthogonal(shows: Tensor, lacks: Tensor, guard: Tensor) -> Tensor:
    """The mean difference minus its part along guard mean - lacks mean; zero where the two coincide (to 1e-3)."""
    return _without(unit(shows - lacks), unit(guard - lacks))


def _without(r: Tensor, away: Tensor) -> Tensor:
    left = r
    for _ in range(2):  # once more, for digits
        left = left - (left * away).sum(-1, keepdim=True) * away
    return torch.where(left.norm(dim=-1, keepdim=True) > 1e-3, unit(left), torch.zeros_like(left))


def auroc(positive: Tensor, negative: Tensor) -> Tensor:
    """P(positive > negative) + P(equal)/2 over all pairs; positive [n, ...], negative [m, ...] -> [...]."""
    n, m = positive.shape[0], negative.shape[0]
    values = torch.cat([positive, negative]).double()
    order = values.sort(dim=0)
    ranks = torch.empty_like(values).scatter_(0, order.indices, _tied_ranks(order.values))
    return (ranks[:n].sum(0) - n * (n + 1) / 2) / (n * m)


def _tied_ranks(ordered: Tensor) -> Tensor:
    """Mean ranks (from 1) of values sorted along the first axis."""
    count = ordered.shape[0]
    position = torch.arange(1, count + 1, dtype=torch.float64).reshape(-1, *[1] * (ordered.dim() - 1)).expand_as(ordered)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(new, position, 0).cummax(0).values
    last_of_run = torch.ones_like(new)
    last_of_run[:-1] = new[1:]
    last = torch.where(last_of_run, position, count + 1).flip(0).cummin(0).values.flip(0)
    return (first + last) / 2


def separation(shows: Tensor, lacks: Tensor) -> Tensor:
    """d': gap of the class means over the pooled deviation, of projections [n, ...] and [m, ...] -> [...]."""
    n, m = shows.shape[0], lacks.shape[0]
    gap = shows.mean(0) - lacks.mean(0)
    pooled = (n * shows.var(0, unbiased=False) + m * lacks.var(0, unbiased=False)) / (n + m)
    return gap / pooled.clamp_min(1e-24).sqrt()


def split_half_cosine(shows: Tensor, lacks: Tensor, rng: torch.Generator, repeats: int = 20) -> Tensor:
    """Median cosine [site] between mean differences of random halves of values [n, site, d]."""
    cosines = []
    for _ in range(repeats):
        halves = []
        for values in (shows, lacks):
            order = torch.randperm(values.shape[0], generator=rng)
            middle = values.shape[0] // 2
            halves.append((values[order[:middle]].mean(0), values[order[middle:]].mean(0)))
        first, second = (halves[0][side] - halves[1][side] for side in (0, 1))
        cosines.append((unit(first) * unit(second)).sum(-1))
    return torch.stack(cosines).median(0).values


def permutation_p(
    train: Tensor, is_shows: Tensor, held_out: Tensor, held_is_shows: Tensor, rng: torch.Generator, repeats: int = 1000
) -> float:
    """p of the largest held-out separation over sites, under shuffled labels.

    train [n, site, d] and held_out [m, site, d] with boolean labels [n], [m]. Each permutation shuffles
    the training labels, refits the mean difference at every site and takes the largest separation of
    the shuffled held-out labels over all sites, so that choosing the best site is part of the null.
    """
    return permutation_p_of(products(train, held_out), is_shows, held_is_shows, rng, repeats)


def products(train: Tensor, held_out: Tensor) -> Tensor:
    """Products of held-out rows with training rows at every site: [n, site, d] and [m, site, d] -> [site, m, n], float64."""
    return torch.einsum("nsd,msd->smn", train.double(), held_out.double())


def permutation_p_of(gram: Tensor, is_shows: Tensor, held_is_shows: Tensor, rng: torch.Generator, repeats: int = 1000) -> float:
    """`permutation_p` of `products` [site, m, n]: a direction is a combination of training rows, so no direction is ever formed."""

    def largest(train_labels: Tensor, held_labels: Tensor) -> Tensor:
        # train_labels [r, n], held_labels [r, m] -> [r]; the scale of a direction cancels in d'.
        weights = train_labels / train_labels.sum(1, keepdim=True) - (1 - train_labels) / (1 - train_labels).sum(1, keepdim=True)
        projections = torch.einsum("smn,rn->rsm", gram, weights)
        a, b = held_labels[:, None], 1 - held_labels[:, None]
        n_a, n_b = a.sum(-1), b.sum(-1)
        mean_a, mean_b = (projections * a).sum(-1) / n_a, (projections * b).sum(-1) / n_b
        within = ((projections - mean_a[..., None]).square() * a + (projections - mean_b[..., None]).square() * b).sum(-1)
        return ((mean_a - mean_b) / (within / (n_a + n_b)).clamp_min(1e-24).sqrt()).amax(1)

    observed = largest(is_shows.double()[None], held_is_shows.double()[None])[0]
    exceeding = 0
    for start in range(0, repeats, 100):
        rows = min(100, repeats - start)
        shuffled = [
            torch.stack([labels[torch.randperm(len(labels), generator=rng)] for _ in range(rows)]).double()
            for labels in (is_shows, held_is_shows)
        ]
        exceeding += int((largest(*shuffled) >= observed - 1e-9 * observed.abs()).sum())  # ties differ in the last digit
    return (exceeding + 1) / (repeats + 1)


def logistic(values: Tensor, labels: Tensor, penalty: float = 1.0) -> tuple[Tensor, Tensor]:
    """A balanced, L2-penalised logistic probe: weight [d] and bias [] on raw values [n, d], labels boolean [n].

    Channels are standardised inside, and the two classes weigh the same however many rows they have.
    A reader only: projecting along it does not remove the class difference (algorithms.md, section 3).
    """
    values, target = values.double(), labels.double()
    centre, spread = values.mean(0), values.std(0).clamp_min(1e-8)
    x = (values - centre) / spread
    # With more channels than rows the penalised optimum lies in the span of the rows: fit there, exactly the same.
    rotation = torch.linalg.qr(x.T).Q.T if x.shape[1] > x.shape[0] else None
    x = x if rotation is None else x @ rotation.T
    share = torch.where(labels, 0.5 / target.sum(), 0.5 / (1 - target).sum())
    weight, bias = _newton(x, target, share, penalty / len(x))
    raw = (weight if rotation is None else weight @ rotation) / spread
    return raw, bias - raw @ centre


def _newton(x: Tensor, target: Tensor, share: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """The least of sum share * loss + penalty * |weight|^2 / 2 by damped Newton steps: weight [d] and bias [], of convex loss.

    Every step solves d + 1 equations, which for the few hundred rows of a probe is less than one line search on the same rows.
    """
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype, device=x.device)], 1)
    ridge = torch.full((x.shape[1],), penalty, dtype=x.dtype, device=x.device)
    ridge[-1] = LEAST_CURVED * penalty
    at = torch.zeros_like(ridge)

    def loss(at: Tensor) -> Tensor:
        return (share * binary_cross_entropy_with_logits(x @ at, target, reduction="none")).sum() + (ridge * at.square()).sum() / 2

    now = loss(at)
    for _ in range(STEPS):
        p = torch.sigmoid(x @ at)
        gradient = x.T @ (share * (p - target)) + ridge * at
        if float(gradient.abs().max()) < SETTLED:
            break
        curved = (x * (share * p * (1 - p))[:, None]).T @ x + ridge.diag()
        step = torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(curved))[:, 0]
        size = 1.0
        while (then := loss(at - size * step)) > now and size > SETTLED:
            size /= 2
        at, now = at - size * step, then
    return at[:-1], at[-1]
