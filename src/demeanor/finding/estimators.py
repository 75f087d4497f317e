"""Estimators of directions, by name: what each makes of the values of the classes at one site, and what it says of itself.

Verbs ask for a trait and never for a name. `@estimator` adds one, from anywhere (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..algebra import directions, estimators
from ..algebra.bases import unit
from ..behaviours import Behaviour
from ..errors import DataError
from ..io.registry import Record, Registry, misfit

CLASSES = ("shows", "lacks", "guard")
Values = Mapping[str, Tensor]  # of the classes at one site: [prompt, d_model], float64


@dataclass(frozen=True)
class Estimate:
    """A unit vector `read` [d_model] along which the classes are told apart, and `write` [d_model] that carries their gap where that is another.

    `read` is zero where nothing is left.
    """

    read: Tensor
    write: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What an estimator says of itself.

    needs: the classes whose values it looks at. paired: row i of one class belongs to row i of the other. reads: it tells the
    classes apart along one vector and carries their gap along another. usual: it is tried where no estimator is named.
    merges: it looks at nothing but the means of shows and lacks, so means of more prompts can be merged in. inducing: its
    vector is the gap between the class means itself, so that adding it brings the behaviour about. keeps_lacks: ablating its
    vector leaves the mean of lacks where it is.
    """

    needs: frozenset[str] = frozenset({"shows", "lacks"})
    paired: bool = False
    reads: bool = False
    usual: bool = False
    merges: bool = False
    inducing: bool = False
    keeps_lacks: bool = False

    @property
    def repeats(self) -> bool:
        """Whether it can be asked again of shows and lacks alone, with what was found before ablated."""
        return not self.reads and self.needs <= {"shows", "lacks"}


Function = Callable[[Values], Estimate]
Estimator = Record[Function, Traits]
F = TypeVar("F", bound=Function)
ESTIMATORS: Registry[Function, Traits] = Registry("estimator", "demeanor.estimators", Traits())


def estimator(
    name: str,
    *,
    needs: Sequence[str] = ("shows", "lacks"),
    paired: bool = False,
    reads: bool = False,
    usual: bool = False,
    merges: bool = False,
    inducing: bool = False,
    keeps_lacks: bool = False,
) -> Callable[[F], F]:
    """Registers a function from `Values` to an `Estimate` under a name; see `Traits` for what it may say of itself.

    Raises DataError for a name that comes with the package, or a class that does not exist.
    """
    unknown = next((need for need in needs if need not in CLASSES), None)
    if unknown is not None:
        raise DataError(f"The estimator {name!r} needs {unknown!r}, which is no class; the classes are {', '.join(CLASSES)}.")
    if merges and not set(needs) <= {"shows", "lacks"}:
        raise DataError(f"The estimator {name!r} says that it merges and needs guard; only what looks at shows and lacks merges.")
    traits = Traits(
        needs=frozenset(needs), paired=paired, reads=reads, usual=usual, merges=merges, inducing=inducing, keeps_lacks=keeps_lacks
    )
    return ESTIMATORS.register(name, traits)


def estimate(asked: Estimator, values: Values) -> Estimate:
    """What an estimator makes of values, float64. Raises DataError, naming it, where that is no estimate of this model's width."""
    who = f"The estimator {asked.name!r}"
    reason = misfit(asked.factory, values)
    if reason is not None:
        raise DataError(f"{who} must take the values of the classes and nothing else: {reason}.")
    result = asked.factory(values)
    if not isinstance(result, Estimate):
        raise DataError(f"{who} returns a {type(result).__name__}; it must return Estimate(read) or Estimate(read, write).")
    if (result.write is not None) != asked.traits.reads:
        raise DataError(f"{who} says reads={asked.traits.reads} and gives {'no' if asked.traits.reads else 'a'} write; make the two agree.")
    width = values["shows"].shape[-1]
    for part, vector in (("read", result.read), ("write", result.write)):
        if vector is not None and (not isinstance(vector, Tensor) or vector.shape != (width,)):
            shape = list(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
            raise DataError(f"{who} gives {shape} as {part}; it must be a vector of length {width}, as the rows of the values are.")
    length = float(result.read.double().norm())
    if length and abs(length - 1) > 1e-6:
        raise DataError(f"{who} gives a read of length {length:.4g}; divide it by its length, or return zeros where nothing is left.")
    return Estimate(result.read.double(), None if result.write is None else result.write.double())


def of_means(asked: Estimator, shows: Tensor, lacks: Tensor) -> Estimate:
    """The estimate from class means [d_model] alone, of one that merges."""
    return estimate(asked, {"shows": shows[None], "lacks": lacks[None]})


def why_unfit(asked: Estimator, behaviour: Behaviour) -> str | None:
    """Why a behaviour's prompts are nothing for an estimator; None where they are."""
    if asked.traits.paired and not behaviour.pairs:
        return f"{asked.name} needs pairs, and {behaviour.name!r} does not say that its rows are; add `pairs: true`, or leave it out."
    if "guard" in asked.traits.needs and not behaviour.guard:
        return f"{asked.name} needs a guard set, and {behaviour.name!r} has none; add `guard`, or leave it out."
    return None


def usual_estimators(behaviour: Behaviour) -> tuple[str, ...]:
    """The names of those that are tried where none is named, as far as the behaviour has the prompts for them."""
    return tuple(record.name for record in ESTIMATORS.every() if record.traits.usual and why_unfit(record, behaviour) is None)


def known_estimators(names: Sequence[str]) -> tuple[Estimator, ...]:
    """The estimators of these names, each once. Raises DataError for an unknown one; a behaviour and a model need not be there yet."""
    return tuple(ESTIMATORS.named(name) for name in dict.fromkeys(names))


def named_estimators(behaviour: Behaviour, names: Sequence[str]) -> tuple[Estimator, ...]:
    """The estimators of these names. Raises DataError for an unknown one, none at all, or one that the behaviour has no prompts for."""
    if isinstance(names, str) or not names:
        raise DataError(f"Estimators are a list of at least one name, such as [{ESTIMATORS.own_names()[0]!r}], and not {names!r}.")
    chosen = known_estimators(names)
    for record in chosen:
        reason = why_unfit(record, behaviour)
        if reason is not None:
            raise DataError(reason)
    return chosen


@estimator("mean_difference", usual=True, merges=True, inducing=True)
def _mean_difference(values: Values) -> Estimate:
    return Estimate(directions.mean_difference(values["shows"].mean(0), values["lacks"].mean(0)))


@estimator("projected", usual=True, merges=True, keeps_lacks=True)
def _projected(values: Values) -> Estimate:
    return Estimate(directions.projected(values["shows"].mean(0), values["lacks"].mean(0)))


@estimator("guard_orthogonal", needs=CLASSES, usual=True)
def _guard_orthogonal(values: Values) -> Estimate:
    return Estimate(directions.guard_orthogonal(*(values[name].mean(0) for name in CLASSES)))


@estimator("median_difference")
def _median_difference(values: Values) -> Estimate:
    return Estimate(estimators.median_difference(values["shows"], values["lacks"]))


@estimator("spectral_residual")
def _spectral_residual(values: Values) -> Estimate:
    return Estimate(estimators.spectral_residual(values["shows"], values["lacks"]))


@estimator("paired_pca", paired=True)
def _paired_pca(values: Values) -> Estimate:
    return Estimate(estimators.paired_pca(values["shows"], values["lacks"])[0])


@estimator("pooled_pca")
def _pooled_pca(values: Values) -> Estimate:
    return Estimate(estimators.pooled_pca(values["shows"], values["lacks"])[0])


@estimator("whitened", reads=True)
def _whitened(values: Values) -> Estimate:
    return Estimate(*estimators.whitened(values["shows"], values["lacks"]))


@estimator("logistic", reads=True)
def _logistic(values: Values) -> Estimate:
    labels = torch.tensor([True] * len(values["shows"]) + [False] * len(values["lacks"]))
    weight, _ = directions.logistic(torch.cat([values["shows"], values["lacks"]]), labels)
    return Estimate(unit(weight), values["shows"].mean(0) - values["lacks"].mean(0))
