"""What an audit found, in sentences: the verdict first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .audited import Audit, Strength

EVEN = 0.02  # strengths within this are called one
NAMED = 3  # tensors that a sentence names


def verdict(found: Audit) -> str:
    """One sentence: what was done to the model."""
    names = f"{found.edited} is {found.base}"
    if found.kind == "same":
        return f"{names} unchanged: every weight that both hold is the same."
    if found.kind == "rounding":
        return f"{names} stored anew: weights differ by {found.rest:.2%}, which rounding explains, and nothing was taken out."
    if found.kind == "other":
        return f"{names} trained further, or merged: no direction was taken out of what its writers make, which changed by {found.rest:.2%}, and {_others(found)}."
    count = len(found.basis)
    what = "one direction" if count == 1 else f"{count} directions"
    return f"{names} with {what} {_done(found.strength)}{_kept(found)}; {_missed(found)}; {_others(found)}."


def notes(found: Audit) -> list[str]:
    """What else is to be told, a sentence each."""
    lines = []
    if found.kind == "ablation":
        lines.append(f"{found.share:.1%} of the change of writers lies along what was taken out. The rest is {found.rest:.2%} of the weights; {_rounding(found)}.")
        values = [one.value for one in found.strengths if one not in found.missed]
        if values and max(values) - min(values) > EVEN * abs(found.strength):
            lines.append(f"The strength is not the same everywhere: {min(values):.2f} to {max(values):.2f}.")
        if found.kept:
            lines.append("The control removes the directions and does not keep lengths, which takes weights.")
    if found.missed:
        lines.append(f"Still there: {_some([one.pair.where for one in found.missed])}.")
    if found.trained:
        lines.append(f"Changed as well: {_some([f'{name} ({size:.2%})' for name, size in found.trained])}.")
    if found.unused:
        lines.append(f"Not looked at, because the model as it is loaded does without (heads for drafts, say): {_some(found.unused)}.")
    if found.alone:
        lines.append(f"In one of the two alone: {_some(found.alone)}.")
    return lines


def _done(strength: float) -> str:
    """What a strength does to what lies along a direction."""
    at = f"(strength {strength:.2f})"
    if strength < 0:
        return f"made stronger {at}: what lay along it is {1 - strength:.2f} times what it was"
    if strength < 1 - EVEN:
        return f"removed in part {at}: {1 - strength:.0%} of it is left"
    if strength <= 1 + EVEN:
        return f"removed {at}"
    what = "inverted" if strength >= 1.75 else "removed and overshot"
    return f"{what} {at}: {strength - 1:.0%} of what lay along it is there with the other sign"


def _kept(found: Audit) -> str:
    return f", the lengths of {found.kept} kept" if found.kept else ""


def _missed(found: Audit) -> str:
    if not found.missed:
        return "no writer was missed"
    return f"{len(found.missed)} of {len(found.strengths)} matrices that write were missed"


def _others(found: Audit) -> str:
    return f"{len(found.trained)} other tensors changed too" if found.trained else "no other tensor changed"


def _rounding(found: Audit) -> str:
    return "rounding explains it" if found.rest <= found.rounding else f"rounding explains {found.rounding:.1g} at most"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def rows(found: Audit) -> list[tuple[str, ...]]:
    """A table: for every layer and role, the strengths, and how large the change is in units of the weight."""
    places: dict[tuple[int, str], list[Strength]] = {}
    for one in found.strengths:
        places.setdefault((one.layer, one.role), []).append(one)
    return [
        ("embedding" if role == "embed" else str(layer), role, str(len(some)), _range([one.value for one in some]), _percent([one.relative for one in some]))
        for (layer, role), some in sorted(places.items())
    ]


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}"


def _percent(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2%}"
