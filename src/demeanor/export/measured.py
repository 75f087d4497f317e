"""What a run measured of its control, for those who get the control alone: what went, and what was kept, beside each other."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError

from ..controls.files import CONTROL
from ..io.checkpoint import read_json
from ..progress import warn

SCORES = "scores.json"


class _Rate(BaseModel):
    value: float | None  # None where nothing was asked
    low: float | None = None
    high: float | None = None
    n: int


class _Rates(BaseModel):
    shows_rate: _Rate
    guard_rate: _Rate


class _Scores(BaseModel):
    """What is read of a run's scores."""

    behaviour: str
    before: _Rates
    after: _Rates


def measured(control: str | Path) -> tuple[str, ...]:
    """Sentences of a run's test split, the guard always; none where the file is not a run's own control at the dose that was measured."""
    path = Path(control)
    folder = path if path.is_dir() else path.parent
    if not (path.is_dir() or path.name == CONTROL) or not (folder / SCORES).is_file():
        return ()
    try:
        scores = _Scores.model_validate(read_json(folder / SCORES))
    except ValidationError as error:
        warn(f"{folder / SCORES} is not what a run writes ({error.error_count()} values), so it is not shown beside the control.")
        return ()
    before, after = scores.before, scores.after
    guard = _changed("guard", before.guard_rate, after.guard_rate) if after.guard_rate.n else "guard: none, so nothing says what else was lost"
    return _changed(scores.behaviour, before.shows_rate, after.shows_rate), guard


def _changed(what: str, before: _Rate, after: _Rate) -> str:
    was, now = ("nothing" if rate.value is None else f"{100 * rate.value:.1f} %" for rate in (before, after))
    within = "" if after.low is None or after.high is None else f" [{100 * after.low:.1f}, {100 * after.high:.1f}]"
    return f"{what}: {was} before, {now}{within} after (n {after.n}, test)"
