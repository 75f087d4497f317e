"""More prompts for a direction that was found before: class moments merge, and nothing is read again.

For estimators that look at class means alone the result equals finding the direction at its site on all prompts together (Chan, Golub and
LeVeque's merge of means and variances). Selection is not done again, and the p and the split-half cosine stay those of the first prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..algebra import directions
from ..algebra.moments import Moments
from ..behaviours import BehaviourLike, as_behaviour
from ..controls import Direction
from ..controls.direction import as_direction
from ..errors import ControlError, DataError
from ..measure.bench import Bench
from ..models import Session, Site
from ..runtime.positions import REPLY
from .estimators import ESTIMATORS, of_means
from .filter import Sets, filter_prompts, with_own_replies
from .plan import UpdatePlan


@dataclass(frozen=True, kw_only=True)
class LayerDrift:
    """What the new prompts changed at one site: the cosine of the mean difference before and after, of the mean difference
    of the new prompts alone with the one before, and by how many within-class deviations either class mean moved."""

    site: Site
    cosine: float
    cosine_of_new: float
    shows_moved: float
    lacks_moved: float

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "site": str(self.site)}


@dataclass(frozen=True)
class Updated:
    """The direction on all prompts, what became of every site, and how many prompts were kept of those given."""

    direction: Direction
    drift: tuple[LayerDrift, ...]
    counts: Mapping[str, Mapping[str, int]]


def update(session: Session, direction: Direction, behaviour: BehaviourLike, plan: UpdatePlan | None = None, **options: Any) -> Updated:
    """`direction` with the train prompts of `behaviour` merged in, filtered by what the model does, and tested on its val prompts.

    The prompts must be others than those it was found on: the same ones would count twice. Raises ControlError for
    another model structure, a rank above 1, an estimator that does not merge or a file without moments of all layers.
    """
    max_prompts = UpdatePlan.given(plan, options, "update").max_prompts
    behaviour, direction = as_behaviour(behaviour, session), as_direction(direction)
    _refuse_unmergeable(session, direction)
    behaviour.needs_prompts()
    bench = Bench(session, behaviour, "val", max_prompts=max_prompts)
    over_replies = direction.site.position == REPLY
    if behaviour.has_replies and not over_replies:
        raise DataError("A direction read at prompts is updated by prompts, and these are replies; find one with `find` on them.")
    sets = filter_prompts(bench, max_prompts)
    if over_replies and not sets.replied:
        sets = with_own_replies(bench, sets)
    sites = [Site(layer, direction.site.point, direction.site.position) for layer in range(session.layout.n_layers)]
    new = {name: Moments.of(session.capture(sets.train[name], sites, direction.after).values) for name in ("shows", "lacks")}
    assert direction.layers is not None
    merged = tuple(old.merge(new[name]) for old, name in zip(direction.layers, ("shows", "lacks")))
    shows, lacks = merged
    at = direction.site.layer
    vector = of_means(ESTIMATORS.named(direction.estimator), shows.mean[at], lacks.mean[at]).read
    if not vector.any():
        raise DataError("With the new prompts nothing is left of this direction; find it anew on all prompts.")
    separation, auroc = _held_out(session, sets, direction, vector)
    merged_direction = replace(
        direction, basis=vector.float()[None], shows=_at(shows, at), lacks=_at(lacks, at), layers=(shows, lacks),
        separation=separation, auroc=auroc,
    )  # fmt: skip
    return Updated(merged_direction, tuple(_drift(site, direction.layers, new, (shows, lacks)) for site in sites), sets.counts)


def _refuse_unmergeable(session: Session, direction: Direction) -> None:
    if direction.layout.hash != session.layout.hash:
        raise ControlError(
            f"The direction was found in structure {direction.layout.hash} ({direction.model_name}), and {session.name} has {session.layout.hash}; find it anew."
        )
    if not ESTIMATORS.named(direction.estimator).traits.merges or len(direction.basis) != 1:
        raise ControlError(
            f"A direction of rank {len(direction.basis)} by {direction.estimator} does not follow from merged means; find it anew on all prompts."
        )
    if direction.layers is None:
        raise ControlError("The direction holds no moments of all layers; find it anew.")


def _at(moments: Moments, layer: int) -> Moments:
    return Moments(moments.n, moments.mean[layer], moments.variance[layer])


def _held_out(session: Session, sets: Sets, direction: Direction, vector: Tensor) -> tuple[float, float]:
    """d' and AUROC of the new val prompts along the new direction."""
    along = [
        session.capture(sets.val[name], [direction.site], direction.after).values[:, 0].double() @ vector for name in ("shows", "lacks")
    ]
    return float(directions.separation(*along)), float(directions.auroc(*along))


def _drift(site: Site, before: tuple[Moments, Moments], new: Mapping[str, Moments], after: tuple[Moments, Moments]) -> LayerDrift:
    def difference(shows: Moments, lacks: Moments) -> Tensor:
        return directions.mean_difference(shows.mean[site.layer], lacks.mean[site.layer])

    def moved(old: Moments, now: Moments) -> float:
        # Per channel, over the root mean variance of the class: how many deviations the mean went.
        gap = (now.mean - old.mean)[site.layer]
        return float(gap.norm() / old.variance[site.layer].sum().clamp_min(torch.finfo(torch.float64).tiny).sqrt())

    was = difference(*before)
    return LayerDrift(
        site=site,
        cosine=float(was @ difference(*after)),
        cosine_of_new=float(was @ difference(new["shows"], new["lacks"])),
        shows_moved=moved(before[0], after[0]),
        lacks_moved=moved(before[1], after[1]),
    )
