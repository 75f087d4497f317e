"""Which estimators of directions there are, by name: what each makes of the values of the classes at one site."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algebra import directions, estimators
from ..controls.direction import Estimator


@dataclass(frozen=True)
class Estimate:
    """A unit vector [d_model] along which the classes are told apart, and what carries their gap where that is another."""

    read: Tensor
    write: Tensor | None = None


Values = Mapping[str, Tensor]  # of the classes at one site: [prompt, d_model]


def _of_means(estimate: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Values], Estimate]:
    return lambda values: Estimate(estimate(values["shows"].mean(0), values["lacks"].mean(0)))


def _of_values(estimate: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Values], Estimate]:
    return lambda values: Estimate(estimate(values["shows"], values["lacks"]))


def _guard_orthogonal(values: Values) -> Estimate:
    return Estimate(directions.guard_orthogonal(*(values[name].mean(0) for name in ("shows", "lacks", "guard"))))


def _whitened(values: Values) -> Estimate:
    return Estimate(*estimators.whitened(values["shows"], values["lacks"]))


def _logistic(values: Values) -> Estimate:
    labels = torch.tensor([True] * len(values["shows"]) + [False] * len(values["lacks"]))
    weight, _ = directions.logistic(torch.cat([values["shows"], values["lacks"]]), labels)
    return Estimate(directions.unit(weight), values["shows"].mean(0) - values["lacks"].mean(0))


ESTIMATORS: Mapping[Estimator, Callable[[Values], Estimate]] = {
    "mean_difference": _of_means(directions.mean_difference),
    "projected": _of_means(directions.projected),
    "guard_orthogonal": _guard_orthogonal,
    "median_difference": _of_values(estimators.median_difference),
    "paired_pca": _of_values(lambda shows, lacks: estimators.paired_pca(shows, lacks)[0]),
    "pooled_pca": _of_values(lambda shows, lacks: estimators.pooled_pca(shows, lacks)[0]),
    "whitened": _whitened,
    "logistic": _logistic,
}
USUAL: tuple[Estimator, ...] = ("mean_difference", "projected", "guard_orthogonal")
