"""What is kept of one layer once its values are gone: moments, estimates, and what tells them from chance.

Everything is computed as `Classes` does from the values of all layers at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from ..algebra import directions
from ..algebra.moments import Moments
from ..io.tensors import Stored, read_tensors, write_tensors
from .estimators import Estimate, Estimator, estimate

KIND = "layer"  # of the file
Values = Mapping[str, Tensor]  # of the classes: [prompt, position, d_model], float64


@dataclass(frozen=True)
class Estimated:
    """What an estimator made of one position: held-out d' and AUROC along what it reads."""

    position: int  # a number among the positions that were read
    estimator: str
    estimate: Estimate
    separation: float
    auroc: float


@dataclass(frozen=True)
class LayerFound:
    """One layer at all positions. shows, lacks: moments [position, d_model]; separation, cosine [position] of the mean difference, held out and
    of split halves; products [position, val prompt, train prompt] of shows and lacks, one below the other."""

    shows: Moments
    lacks: Moments
    separation: Tensor
    cosine: Tensor
    products: Tensor
    estimated: tuple[Estimated, ...]

    @classmethod
    def of(cls, train: Values, val: Values, estimators: Sequence[Estimator]) -> LayerFound:
        """From the values of the classes: train of all, val of shows and lacks."""
        shows, lacks = (Moments.of(train[name]) for name in ("shows", "lacks"))
        difference = directions.mean_difference(shows.mean, lacks.mean)
        along = [torch.einsum("npd,pd->np", val[name], difference) for name in ("shows", "lacks")]
        return cls(
            shows=shows,
            lacks=lacks,
            separation=directions.separation(*along),
            cosine=directions.split_half_cosine(train["shows"], train["lacks"], torch.Generator().manual_seed(0)),
            products=directions.products(*(torch.cat([values["shows"], values["lacks"]]) for values in (train, val))),
            estimated=tuple(_estimated(train, val, estimators)),
        )

    def save(self, path: Path) -> None:
        tensors = {
            "shows.mean": self.shows.mean, "shows.variance": self.shows.variance, "lacks.mean": self.lacks.mean, "lacks.variance": self.lacks.variance,
            "separation": self.separation, "cosine": self.cosine, "products": self.products,
        }  # fmt: skip
        for number, one in enumerate(self.estimated):
            tensors[f"read.{number}"] = one.estimate.read
            if one.estimate.write is not None:
                tensors[f"write.{number}"] = one.estimate.write
        entries = [{"position": one.position, "estimator": one.estimator, "separation": one.separation, "auroc": one.auroc} for one in self.estimated]
        write_tensors(path, tensors, {"kind": KIND, "n": [self.shows.n, self.lacks.n], "estimated": entries})

    @classmethod
    def read(cls, path: Path) -> LayerFound:
        stored = read_tensors(path, KIND)
        header = stored.decoded(_Header)
        shows, lacks = (
            Moments(n, stored.tensor(f"{name}.mean"), stored.tensor(f"{name}.variance")) for n, name in zip(header.n, ("shows", "lacks"))
        )
        estimated = tuple(_entry(stored, number, entry) for number, entry in enumerate(header.estimated))
        separation, cosine, products = (stored.tensor(name) for name in ("separation", "cosine", "products"))
        return cls(shows, lacks, separation, cosine, products, estimated)


class _Entry(BaseModel):
    position: int
    estimator: str
    separation: float
    auroc: float


class _Header(BaseModel):
    n: tuple[int, int]
    estimated: tuple[_Entry, ...]


def _entry(stored: Stored, number: int, entry: _Entry) -> Estimated:
    found = Estimate(stored.tensor(f"read.{number}"), stored.tensors.get(f"write.{number}"))
    return Estimated(estimate=found, **entry.model_dump())


def _estimated(train: Values, val: Values, estimators: Sequence[Estimator]) -> list[Estimated]:
    """What every estimator makes of every position; those of which nothing is left are not there."""
    estimated: list[Estimated] = []
    for position in range(train["shows"].shape[1]):
        values = {name: rows[:, position] for name, rows in train.items()}
        for record in estimators:
            found = estimate(record, values)
            if found.read.any():
                along = [val[name][:, position] @ found.read for name in ("shows", "lacks")]
                told: dict[str, Any] = {"separation": float(directions.separation(*along)), "auroc": float(directions.auroc(*along))}
                estimated.append(Estimated(position, record.name, found, **told))
    return estimated
