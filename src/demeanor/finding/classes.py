"""Activations of the classes at all sites: moments, estimates, and a test against chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algebra import directions
from ..algebra.moments import Moments
from ..errors import NoUsableDirection
from ..measure.ledger import Ledger
from ..models import Site
from ..runtime.positions import Position
from .estimators import Estimate, Estimator, estimate
from .filter import Sets

P_MAX, COSINE_MIN = 0.01, 0.3


@dataclass(frozen=True)
class Chance:
    """Of the mean difference at every site: held-out separation, split-half cosine [site], and one p."""

    separation: Tensor
    cosine: Tensor
    p: float

    def refuse(self, sites: Sequence[Site]) -> None:
        """Raises NoUsableDirection when the best of the sites is no better than shuffled labels, or not stable."""
        best = int(self.separation.argmax())
        if self.p > P_MAX or not float(self.cosine[best]) >= COSINE_MIN:  # a cosine that is no number is none
            raise NoUsableDirection(
                f"No usable direction: at the best site ({sites[best]}) p = {self.p:.3f} (at most {P_MAX}) and the split-half cosine"
                f" is {float(self.cosine[best]):.2f} (at least {COSINE_MIN}); use more prompts, or sets that differ in the behaviour only."
            )


class Classes:
    """Activations of the classes at all sites, and what is estimated from them. float64 throughout."""

    def __init__(self, ledger: Ledger, sets: Sets, sites: Sequence[Site], after: Sequence[int]) -> None:
        self.sites, self.after = tuple(sites), tuple(after)
        self._layers: dict[Position, tuple[Moments, Moments]] = {}
        self.train = {name: ledger.capture(prompts, sites, after).values.double() for name, prompts in sets.train.items() if prompts}
        self.val = {name: ledger.capture(sets.val[name], sites, after).values.double() for name in ("shows", "lacks")}

    def moments(self, name: str, number: int) -> Moments:
        return Moments.of(self.train[name][:, number])

    def layers(self, position: Position) -> tuple[Moments, Moments]:
        """Moments of shows and lacks at all layers and one position: [layer, d_model]."""
        if position not in self._layers:
            numbers = [number for number, site in enumerate(self.sites) if site.position == position]
            shows, lacks = (Moments.of(self.train[name][:, numbers]) for name in ("shows", "lacks"))
            self._layers[position] = shows, lacks
        return self._layers[position]

    def estimates(self, number: int, estimators: Sequence[Estimator]) -> list[tuple[str, Estimate]]:
        """What every estimator makes of one site; those of which nothing is left are not there."""
        values = {name: rows[:, number] for name, rows in self.train.items()}
        estimates = [(estimator.name, estimate(estimator, values)) for estimator in estimators]
        return [(name, result) for name, result in estimates if result.read.any()]

    def against_chance(self) -> Chance:
        """Raises NoUsableDirection when the best site is no better than shuffled labels, or not stable."""
        rng = torch.Generator().manual_seed(0)
        difference = directions.mean_difference(self.train["shows"].mean(0), self.train["lacks"].mean(0))
        along = {name: torch.einsum("nsd,sd->ns", values, difference) for name, values in self.val.items()}
        separation = directions.separation(along["shows"], along["lacks"])
        cosine = directions.split_half_cosine(self.train["shows"], self.train["lacks"], rng)
        p = directions.permutation_p(*_labelled(self.train), *_labelled(self.val), rng)
        chance = Chance(separation, cosine, p)
        chance.refuse(self.sites)
        return chance


def _labelled(classes: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Values of shows and lacks one below the other, and which rows are shows."""
    sizes = len(classes["shows"]), len(classes["lacks"])
    labels = torch.cat([torch.ones(sizes[0], dtype=torch.bool), torch.zeros(sizes[1], dtype=torch.bool)])
    return torch.cat([classes["shows"], classes["lacks"]]), labels
