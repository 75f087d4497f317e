"""A control that does at run time what was done to a model's weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..controls import Control, Part, Scope
from ..controls.control import provenance
from ..structure.layout import Layout, Role

if TYPE_CHECKING:
    from .audited import Strength

ALIKE = 0.01  # strengths that differ by less are one


def recovered(basis: Tensor, usual: float, strengths: Sequence[Strength], layout: Layout, base: str, edited: str) -> Control:
    """The ablation of a basis [k, d_model] with the strengths that were found: one part where all writers have the same, else one for
    the embedding, one for attention and one for the MLPs, with a weight per layer."""
    made_from = provenance(method="audit", edited=edited)
    found = _by_place(strengths)
    if all(abs(value - usual) <= ALIKE * abs(usual) + error for value, error in found.values()):
        parts: list[Part] = [Part(kind="ablate", vectors=basis, dose=usual, scope=Scope())]
    else:
        parts = list(_parts(basis, usual, found, layout))
    return Control(parts=tuple(parts), layout=layout, model_name=base, made_from=made_from)


def _by_place(strengths: Iterable[Strength]) -> dict[tuple[Role, int], tuple[float, float]]:
    """Strength and standard error of the writers of a role in a layer: the mean of their matrices."""
    places: dict[tuple[Role, int], list[Strength]] = defaultdict(list)
    for one in strengths:
        places[one.role, one.layer].append(one)
    return {place: (sum(one.value for one in some) / len(some), 3 * max(one.error for one in some)) for place, some in places.items()}


def _parts(basis: Tensor, usual: float, found: dict[tuple[Role, int], tuple[float, float]], layout: Layout) -> Iterable[Part]:
    roles: tuple[Role, ...] = ("embed", "attn", "mlp")
    for role in roles:
        layers = [max(0, layer) for layer in range(layout.n_layers)]
        weights = [0.0] * len(layers)
        for (place, layer), (value, error) in found.items():
            if place == role:
                weights[max(0, layer)] = value / usual if abs(value) > error else 0.0
        if any(weights):
            yield Part(kind="ablate", vectors=basis, dose=usual, scope=Scope(role=role, layers=tuple(weights)))
