"""Gates: which rows of a batch a control acts on, decided by a probe at the end of the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..algebra.directions import auroc, logistic, separation
from ..behaviours import Behaviour, Prompt, SetName
from ..errors import CheckFailed, DataError
from ..models import Session, Site


@dataclass(frozen=True, eq=False)
class Gate:
    """Fires where weight.h + bias > 0 at `site`; weight [d_model] and bias [], float32.

    `auroc`, `hits` and `false_positives` were measured on held-out prompts: the share of the prompts it should
    fire on and should not fire on where it did. `against` names the sets it should not fire on.
    """

    site: Site
    weight: Tensor
    bias: float
    auroc: float
    hits: float
    false_positives: float
    against: tuple[str, ...]

    def margin(self, values: Tensor) -> Tensor:
        """How far above the threshold, values [row, d_model] -> [row]."""
        return values.float() @ self.weight.to(values.device) + self.bias

    def fires(self, values: Tensor) -> Tensor:
        """values [row, d_model] -> bool [row]."""
        return self.margin(values) > 0

    def __str__(self) -> str:
        return f"shows against {' and '.join(self.against)}, {self.site}"

    def to_json(self) -> dict[str, Any]:
        site = {"layer": self.site.layer, "point": self.site.point, "position": self.site.position}
        return {
            "site": site, "bias": self.bias, "auroc": self.auroc, "hits": self.hits,
            "false_positives": self.false_positives, "against": list(self.against),
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: Mapping[str, Any], weight: Tensor) -> Gate:
        rest = {key: values[key] for key in ("bias", "auroc", "hits", "false_positives")}
        return cls(Site(**values["site"]), weight, against=tuple(values["against"]), **rest)


def gate(
    session: Session,
    behaviour: Behaviour,
    *,
    false_positives: float = 0.05,
    against: Sequence[SetName] = ("guard",),
    max_prompts: int | None = None,
) -> Gate:
    """A probe that fires on `shows` and not on the sets in `against`, at the site where it tells them apart best.

    Fitted on train prompts (by logistic regression), site and threshold taken on val prompts, so that at most
    the share `false_positives` of each set in `against` lets the control through. Where the sets are apart
    by a margin, the threshold is put in the middle of it.
    Raises DataError for a missing set, CheckFailed when no site separates the sets (AUROC < 0.7).
    """
    if not 0 < false_positives < 1:
        raise DataError(f"The share of false positives must lie between 0 and 1, not be {false_positives:g}.")
    names: list[SetName] = ["shows", *against]
    if not against or not set(against) <= {"lacks", "guard", "neutral"}:
        raise DataError(f"A gate is made against one or more of guard, lacks and neutral, not {list(against)}.")
    for name in names:
        for split in ("train", "val"):
            if not behaviour.set(name, split):
                raise DataError(f"The behaviour {behaviour.name!r} has no {split} prompts in {name!r}, which the gate needs.")
    sites = [Site(layer, "resid_post", -1) for layer in range(session.layout.n_layers)]
    values = {
        (name, split): session.capture(behaviour.set(name, split, max_prompts), sites).values
        for name in names
        for split in ("train", "val")
    }
    fitted = [_fit(index, site, values, names, false_positives) for index, site in enumerate(sites)]
    # Many sites may rank the val prompts without a mistake; the widest gap is the likeliest to hold on others.
    best, _ = max(fitted, key=lambda pair: (round(pair[0].auroc, 3), pair[1]))
    if best.auroc < 0.7:
        raise CheckFailed(
            f"No site tells shows from {' and '.join(against)} (held-out AUROC {best.auroc:.2f} at best); a gate cannot be made."
        )
    return best


def _fit(
    index: int, site: Site, values: Mapping[tuple[SetName, str], Tensor], names: Sequence[SetName], target: float
) -> tuple[Gate, float]:
    """A gate at one site, and how far apart (d') it holds the val prompts from each other set, at least."""
    shows, *others = names

    def at(name: SetName, split: str) -> Tensor:
        return values[name, split][:, index].double()

    negative = torch.cat([at(name, "train") for name in others])
    labels = torch.tensor([True] * len(at(shows, "train")) + [False] * len(negative))
    weight, bias = logistic(torch.cat([at(shows, "train"), negative]), labels)
    positive = at(shows, "val") @ weight + bias
    held_out = {name: at(name, "val") @ weight + bias for name in others}
    threshold = max(_threshold(positive, scores, target) for scores in held_out.values())
    against = torch.cat(list(held_out.values()))
    made = Gate(
        site, weight.float(), float(bias) - threshold, float(auroc(positive, against)),
        float((positive > threshold).double().mean()), float((against > threshold).double().mean()), tuple(others),
    )  # fmt: skip
    return made, min(float(separation(positive, scores)) for scores in held_out.values())


def _threshold(positive: Tensor, negative: Tensor, target: float) -> float:
    """The lowest threshold that lets at most `target` of the negatives through, moved into the gap above it, if any."""
    allowed = int(target * len(negative))
    ordered = negative.sort(descending=True).values
    edge = float(ordered[allowed]) if allowed < len(ordered) else float(ordered[-1])
    if float(ordered[0]) < float(positive.min()):
        return (float(ordered[0]) + float(positive.min())) / 2
    return edge


def fires_on(session: Session, gate: Gate, prompts: Sequence[Prompt]) -> list[bool]:
    """Whether the gate fires, per prompt."""
    values = session.capture(prompts, [gate.site]).values[:, 0]
    return [bool(fired) for fired in gate.fires(values)]
