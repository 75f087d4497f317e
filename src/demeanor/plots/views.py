"""`plot`: the figure of a result, whatever it is a result of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import plotly.graph_objects as go

from ..audit import Audit
from ..audit.page import changes, strengths
from ..calibrate.dial import Dial
from ..controls import Direction, Gate
from ..errors import DataError, did_you_mean
from ..job.figures import candidates, dose_response, roc, selection, separation
from ..job.result import Run
from ..measure import Measurement
from ..models.projections import Projections
from ..search.page import importance, trade_offs
from ..search.searching import Searched
from ..selfcontrol.page import score_per_iteration, trajectories
from ..selfcontrol.trace import Traces
from .directions import along_text, cosines
from .measured import before_and_after, side_by_side

Drawing = Callable[[Any], go.Figure]
# The views of every noun, the usual one first.
VIEWS: Mapping[type, Mapping[str, Drawing]] = {
    Measurement: {"scores": before_and_after},
    Direction: {"candidates": lambda direction: candidates(direction.candidates)},
    Dial: {"doses": dose_response},
    Gate: {"roc": roc},
    Projections: {"tokens": along_text},
    Run: {
        "scores": lambda run: before_and_after(run.measurement), "separation": separation, "candidates": selection, "doses": lambda run: _dial(run)
    },
    Audit: {"strengths": strengths, "changes": changes},
    Searched: {"front": trade_offs, "axes": importance},
    Traces: {"scores": score_per_iteration, "trajectories": trajectories},
}  # fmt: skip
# Several by name.
TOGETHER: Mapping[type, Drawing] = {Measurement: side_by_side, Direction: cosines}


def plot(result: Any, view: str | None = None) -> go.Figure:
    """A plotly figure of a result.

    A measurement: its rates before and after, with intervals. A mapping of names to measurements: all of them side by side. A direction: the
    candidates that selection saw. A mapping of names to directions: the cosines between them. A dial, a gate, an audit, what a search found,
    the traces of SelfControl, projections of a text, and a run have figures of their own; `view` names one where there are several.

    Raises DataError for what cannot be drawn, and for a view that there is not.
    """
    if isinstance(result, Mapping):
        return _together(result)
    views = next((views for kind, views in VIEWS.items() if isinstance(result, kind)), None)
    if views is None:
        raise DataError(f"There is no figure of {type(result).__name__}; give one of {', '.join(kind.__name__ for kind in VIEWS)}.")
    if view is not None and view not in views:
        raise DataError(f"There is no view {view!r} of {type(result).__name__}{did_you_mean(view, views)}; there is {', '.join(views)}.")
    return views[view or next(iter(views))](result)


def _together(results: Mapping[str, Any]) -> go.Figure:
    kinds = {type(value) for value in results.values()}
    drawing = TOGETHER.get(kinds.pop()) if len(kinds) == 1 else None
    if drawing is None:
        raise DataError(f"A mapping is drawn where it holds {' alone or '.join(kind.__name__ for kind in TOGETHER)} alone, by name.")
    return drawing(results)


def _dial(run: Run) -> go.Figure:
    if run.dial is None:
        raise DataError("This run measured no dial; run it with `doses`, or use the verb `dial`.")
    return dose_response(run.dial)
