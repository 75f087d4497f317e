"""`demeanor measure` and `demeanor ratings`: what controls do, by detectors and by people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..behaviours import Behaviour
from ..controls import Control, load_control
from ..controls.plan import ControlsPlan
from ..detect import make_detector
from ..errors import DataError
from ..io.atomic import new_file
from ..io.json_files import write_json
from ..measure import Bench, Measurement, Observation, measure_all
from ..measure.changed import Changed, changed
from ..measure.condition import Condition
from ..measure.plan import ComparisonPlan, MeasurePlan, SuitePlan
from ..measure.rating import read_ratings, write_sheet
from ..measure.suites import Change
from ..models import Session, SpreadLoading
from ..models.plan import BehaviourPlan
from ..progress import say
from .from_model import from_plans
from .options import AsJson, print_json
from .outputs import MaybeTarget, Output
from .sessions import behaviour_named, opened
from .suites import suites_asked, to_json
from .tables import changed_table, measurement_table, scores_table
from .terminal import out, say_result

RatingSheet = Annotated[
    Optional[Path],
    typer.Option(help="New folder for a blind rating sheet (CSV and HTML), read back by `ratings`.", show_default=False),
    Output("folder"),
]


@from_plans
def measure(
    subject: BehaviourPlan, controlled: ControlsPlan, plan: MeasurePlan, compared: ComparisonPlan, asked: SuitePlan, loading: SpreadLoading,
    target: MaybeTarget = None, rating_sheet: RatingSheet = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Rates of a behaviour, answers and drift on the test split, before and after each control."""
    _check_measuring(controlled.controls, rating_sheet, compared.redo)
    if compared.base is not None and loading.spread:
        raise DataError("--base asks a second model, and workers hold one; leave out --on.")
    named = behaviour_named(subject.behaviour)
    controls = {name: load_control(name) for name in controlled.controls}
    suites = suites_asked(asked)
    session = opened(subject.model, loading)
    behaviour = named.settled(session)
    first = session if compared.base is None else opened(compared.base, loading)
    conditions = _conditions(session, behaviour, controls, compared.redo, plan.prompting) or {
        subject.model if compared.base else "none": Condition(session)
    }
    measured = measure_all(Bench(first, behaviour, max_prompts=plan.max_prompts), conditions, plan)
    changes = suites.compare(Condition(first), conditions) if suites else {}
    inside: dict[str, Changed] = {}
    if compared.base is not None:
        inside = {name: changed(Condition(first), now, measured[name].observed, compared.embedder) for name, now in conditions.items()}
    values = {name: {**measurement.to_json(), **_besides(name, changes, inside)} for name, measurement in measured.items()}
    if target is not None:
        with new_file(target) as file:
            write_json(file, values)
    if rating_sheet is not None:
        _write_sheet(rating_sheet, behaviour, next(iter(measured.values())).observed, next(iter(controls)))
    if as_json:
        print_json(values)
        return
    before = compared.base or subject.model
    _show_measured(measured, f"{before}, {behaviour.name}: test split", "then" if compared.base else "control")
    for change in inside.values():
        out.print(changed_table(change))
    if suites:
        suites.show(changes, before)


def _besides(name: str, changes: Mapping[str, Mapping[str, Sequence[Change]]], inside: Mapping[str, Changed]) -> dict[str, Any]:
    """What the scores hold besides a measurement: suites, and what changed inside."""
    suites = {"suites": to_json(changes[name])} if name in changes else {}
    return suites | ({"changed": inside[name].to_json()} if name in inside else {})


def _show_measured(measured: Mapping[str, Measurement], title: str, kind: str) -> None:
    if len(measured) == 1:
        ((name, measurement),) = measured.items()
        out.print(measurement_table(measurement, f"{title}, {kind} {name}"))
    else:
        out.print(scores_table(measured, title))


def _conditions(
    session: Session, behaviour: Behaviour, controls: Mapping[str, Control], redo: bool, prompting: str | None
) -> dict[str, Condition]:
    """Everything that is measured beside the untouched model, by what the table calls it."""
    conditions = {name: Condition(session, control) for name, control in controls.items()}
    if redo:
        detector = make_detector(behaviour.detect, session)
        conditions |= {
            f"{name}, where the reply shows it": Condition(session, control, redo=detector) for name, control in controls.items()
        }
    if prompting is not None:
        conditions[f"prompting: {prompting}"] = Condition(session, None, prompting)
    return conditions


def _check_measuring(controls: Sequence[str], rating_sheet: Path | None, redo: bool) -> None:
    """Refuses what cannot be measured before anything is loaded."""
    if redo and not controls:
        raise DataError("--redo does a reply again with a control; name one with --control.")
    if rating_sheet is not None and len(controls) != 1:
        raise DataError("A rating sheet compares the untouched model with one control; name it with --control.")
    if len(set(controls)) < len(controls):
        raise DataError("A control is named twice; name each --control once.")


def _write_sheet(folder: Path, behaviour: Behaviour, observed: tuple[Observation, Observation], control: str) -> None:
    sheet = write_sheet(folder, behaviour, *observed, control)
    say(f"{sheet} Then: demeanor ratings {folder}")


def ratings(
    folder: Annotated[Path, typer.Argument(help="Folder that measure --rating-sheet wrote.")],
    file: Annotated[
        Optional[Path], typer.Option("--ratings", help="File that came back, if not the folder's ratings.csv.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verdict of a blind rating sheet: the control against the untouched model, with an interval."""
    read = read_ratings(folder, file)
    if as_json:
        print_json(read.to_json())
    else:
        say_result(read)
