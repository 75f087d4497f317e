"""Fitting a gate: probes or cosines at a site, with thresholds calibrated on held-out decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from ..algebra.bases import unit
from ..algebra.directions import auroc, logistic, mean_difference, separation
from ..behaviours import BehaviourLike, Prompt, SetName, as_behaviour
from ..controls.gate import Gate, Kind
from ..errors import CheckFailed, DataError
from ..measure.ledger import Ledger
from ..models import Session, Site
from ..progress import track
from ..runtime.runner import one_thread
from ..runtime.sites import spread
from .plan import GatePlan

FOLDS = 5


LAYERS = 12  # looked at, at most, spread evenly over the model


APART = 0.7  # AUROC that a probe must reach


CURVE = 50  # points of a ROC curve that are kept, at most


def gate(session: Session, behaviour: BehaviourLike, plan: GatePlan | None = None, *, ledger: Ledger | None = None, **options: Any) -> Gate:
    """A gate that fires on `shows` and not on the sets in `against`, at the layer where it tells them apart best; see `fit_gate`.

    `options` are the fields of `GatePlan` by name, in place of a plan.
    """
    return fit_gate(session, behaviour, **dict(GatePlan.given(plan, options, "gate")), ledger=ledger)[0]


def fit_gate(
    session: Session,
    behaviour: BehaviourLike,
    *,
    false_positives: float,
    against: Sequence[SetName],
    kind: Kind = "probe",
    max_prompts: int | None = None,
    ledger: Ledger | None = None,
) -> tuple[Gate, dict[SetName, list[bool]]]:
    """A gate, and whether it fires on each train and val prompt (in that order) by probes fitted without that prompt's fold.

    Probes (or cosines) on the train and val prompts; layer and thresholds are judged by five-fold cross-fitting. A
    threshold lets at most the share `false_positives` of its set through, and no more than gains hits.
    Raises DataError for a missing set, CheckFailed when no layer separates the sets (AUROC < 0.7).
    """
    behaviour = as_behaviour(behaviour, session)
    if not 0 < false_positives < 1:
        raise DataError(f"The share of false positives must lie between 0 and 1, not be {false_positives:g}.")
    if isinstance(against, str) or not against or not set(against) <= {"lacks", "guard", "neutral"}:
        raise DataError(f"A gate is made against a list of one or more of guard, lacks and neutral, not {against!r}.")
    if kind not in get_args(Kind):
        raise DataError(f"There is no gate of the kind {kind!r}; use {', '.join(get_args(Kind))}.")
    ledger = ledger or Ledger(session)
    sites = [Site(layer) for layer in spread(session.layout.n_layers, LAYERS)]
    values: dict[SetName, Tensor] = {}
    for name in ("shows", *against):
        prompts = [prompt for split in ("train", "val") for prompt in behaviour.set(name, split, max_prompts)]
        if len(prompts) < FOLDS:
            raise DataError(
                f"The behaviour {behaviour.name!r} has {len(prompts)} train and val prompts in {name!r}; a gate needs at least {FOLDS}."
            )
        values[name] = ledger.capture(prompts, sites).values.double()
    with one_thread():  # many small solutions: several threads cost more than they save
        fitted = [
            _fit(site, {name: value[:, number] for name, value in values.items()}, false_positives, kind)
            for number, site in enumerate(track(sites, "Fitting gates", len(sites)))
        ]
    # Many layers may make no mistake here; the widest gap is the likeliest to hold on other prompts.
    best, fires, _ = max(fitted, key=lambda item: (round(item[0].auroc, 3), round(item[0].hits - item[0].false_positives, 3), item[2]))
    if best.auroc < APART:
        raise CheckFailed(
            f"No site tells shows from {' and '.join(against)} (held-out AUROC {best.auroc:.2f} at best); a gate cannot be made."
        )
    return best, {name: fired.tolist() for name, fired in fires.items()}


def _fit(site: Site, values: Mapping[SetName, Tensor], target: float, kind: Kind) -> tuple[Gate, dict[SetName, Tensor], float]:
    """A gate at one site, its held-out decisions [row] by set, and how far apart (d') it holds the sets, at least."""
    others = [name for name in values if name != "shows"]
    values = {name: unit(rows) if kind == "cosine" else rows for name, rows in values.items()}
    scores = _cross_fitted(values, others, kind)
    columns = [(scores["shows"][:, number], scores[name][:, number]) for number, name in enumerate(others)]
    thresholds = torch.tensor([_threshold(positive, negative, target) for positive, negative in columns], dtype=torch.float64)
    fires = {name: (score > thresholds).all(1) for name, score in scores.items()}
    probes = [_probe(values["shows"], values[name], kind) for name in others]
    margins = {name: (score - thresholds).amin(1) for name, score in scores.items()}
    made = Gate(
        site=site,
        weights=torch.stack([weight for weight, _ in probes]).float(),
        biases=(torch.stack([bias for _, bias in probes]) - thresholds).float(),
        auroc=min(float(auroc(positive, negative)) for positive, negative in columns),
        hits=float(fires["shows"].double().mean()),
        false_positives=float(torch.cat([fires[name] for name in others]).double().mean()),
        against=tuple(others),
        kind=kind,
        roc=_roc(margins["shows"], torch.cat([margins[name] for name in others])),
    )
    return made, fires, min(float(separation(positive, negative)) for positive, negative in columns)


def _probe(positive: Tensor, negative: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    if kind == "cosine":
        return mean_difference(positive.mean(0), negative.mean(0)), torch.zeros((), dtype=positive.dtype)
    labels = torch.tensor([True] * len(positive) + [False] * len(negative))
    return logistic(torch.cat([positive, negative]), labels)


def _cross_fitted(values: Mapping[SetName, Tensor], others: Sequence[SetName], kind: Kind) -> dict[SetName, Tensor]:
    """Scores [row, probe] of every prompt by probes fitted without its fold; a column per set in `others`."""
    scores = {name: torch.zeros(len(rows), len(others), dtype=torch.float64) for name, rows in values.items()}
    for fold in range(FOLDS):
        kept = {name: rows[torch.arange(len(rows)) % FOLDS != fold] for name, rows in values.items()}
        for number, other in enumerate(others):
            weight, bias = _probe(kept["shows"], kept[other], kind)
            for name, rows in values.items():
                scores[name][fold::FOLDS, number] = rows[fold::FOLDS] @ weight + bias
    return scores


def _roc(positive: Tensor, negative: Tensor) -> tuple[tuple[float, float], ...]:
    """(false positives, hits) from the strictest cut to the loosest, the corners left in where there are too many."""
    cuts = torch.cat([positive, negative]).unique().flip(0)
    points = [(0.0, 0.0), *((float((negative >= cut).double().mean()), float((positive >= cut).double().mean())) for cut in cuts)]
    every = max(1, -(-len(points) // CURVE))
    return tuple(dict.fromkeys([*points[::every], points[-1]]))


def _threshold(positive: Tensor, negative: Tensor, target: float) -> float:
    """Where hits less false positives are most, with at most `target` of the negatives above; the widest gap among equals."""
    ordered = torch.cat([positive, negative]).unique()
    below = torch.cat([ordered, ordered[-1:] + 2.0])
    cuts, widths = (below[1:] + below[:-1]) / 2, below.diff()
    hits = (positive[None] > cuts[:, None]).double().mean(1)
    false = (negative[None] > cuts[:, None]).double().mean(1)
    allowed = false <= target  # the highest cut, above everything, always is
    best = max(range(len(cuts)), key=lambda cut: (bool(allowed[cut]), round(float(hits[cut] - false[cut]), 6), float(widths[cut])))
    return float(cuts[best])


def fires_on(ledger: Ledger | Session, gate: Gate, prompts: Sequence[Prompt]) -> list[bool]:
    """Whether the gate fires, per prompt."""
    values = ledger.capture(prompts, [gate.site]).values[:, 0]
    return [bool(fired) for fired in gate.fires(values)]
