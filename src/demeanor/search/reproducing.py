"""An earlier search done again, and what differs: versions, structure, proposals, the front, and what the picked point did."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .plan import SearchPlan
from .searching import RESULT, Searched, resolved, search

ALIKE = 1e-4  # of shares and nats: what the last bits of other machines may change
SAME = ("versions", "environment", "structure")


def read_result(path: Path) -> dict[str, Any]:
    """What an earlier search resolved, from its folder or its search.json. Raises DataError where that is none."""
    file = path / RESULT if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"The result {file} cannot be read: {error.strerror}; name the folder of a search, or its {RESULT}.") from error
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON; name the folder of a search, or its {RESULT}.") from error
    if not isinstance(values, dict) or not {"plan", "digest", "front", "trials", "scores", *SAME} <= set(values):
        raise DataError(f"{file} is not what a search writes; name the folder of a search, or its {RESULT}.")
    return values


def reproduce(earlier: str | Path, out: str | Path, plan: SearchPlan | None = None) -> tuple[Searched, list[str]]:
    """The search again, as many trials as it had, in a study of its own; and a sentence for everything that differs.

    plan: in place of the earlier one, where something is to be otherwise.
    """
    before = read_result(Path(earlier))
    plan = SearchPlan.of(before["plan"], str(earlier)) if plan is None else plan
    result = search(plan.model_copy(update={"trials": before["trials"], "minutes": None, "storage": None}), out)
    return result, differences(before, resolved(result))


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two results, most telling first: what was run on, what was proposed, the front, the scores on test."""
    sentences = []
    for name in SAME:
        was, now = _flat(before[name]), _flat(after[name])
        sentences += [f"{' '.join(filter(None, (name, key)))}: {was.get(key)} before, {now.get(key)} now." for key in {**was, **now} if was.get(key) != now.get(key)]
    if before["digest"] != after["digest"]:
        sentences.append("The trials are others: the study proposed other settings, or in another order.")
    sentences += _front(before["front"], after["front"])
    for name, was in before["scores"].items():
        now = after["scores"].get(name)
        if _apart(was, now):
            sentences.append(f"{name} of the picked point on test: {was} before, {now} now.")
    return sentences


def _front(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[str]:
    settings = [[point["setting"] for point in points] for points in (before, after)]
    if settings[0] != settings[1]:
        shared = sum(setting in settings[1] for setting in settings[0])
        return [f"The front has {len(after)} points, {shared} of the {len(before)} that it had before."]
    return [
        f"{name} of point {number}: {was} before, {now['confirmed'][name]} now."
        for number, (old, now) in enumerate(zip(before, after))
        for name, was in old["confirmed"].items()
        if _apart(was, now["confirmed"][name])
    ]


def _apart(was: float | None, now: float | None) -> bool:
    return was != now if was is None or now is None else abs(was - now) > ALIKE


def _flat(values: Any) -> dict[str, Any]:
    return dict(values) if isinstance(values, Mapping) else {"": values}
