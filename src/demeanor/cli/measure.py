"""`demeanor measure` and `demeanor ratings`: what controls do, by detectors and by people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..behaviours import Behaviour
from ..controls import Control, load_control
from ..detect import make_detector
from ..errors import DataError
from ..io.atomic import new_file, refuse_existing, refuse_folder
from ..io.json_files import write_json
from ..measure import Bench, Measurement, Observation, measure_all
from ..measure.changed import Changed, changed
from ..measure.condition import Condition
from ..measure.rating import read_ratings, write_sheet
from ..measure.suites import Change
from ..models import Session
from ..models.session import REPLY_TOKENS
from ..progress import say
from .options import (
    AsJson,
    BehaviourName,
    Controls,
    Device,
    Dtype,
    In4bit,
    In8bit,
    MaxPrompts,
    Model,
    ReplyTokens,
    behaviour_named,
    opened,
    out,
    print_json,
)
from .suites import SuiteChat, SuiteFolder, SuiteLimit, SuiteNames, suites_asked, to_json
from .tables import changed_table, measurement_table, scores_table

ScoresFile = Annotated[Optional[Path], typer.Option("-o", "--out", help="Also write the scores to this JSON file.", show_default=False)]
RatingSheet = Annotated[
    Optional[Path],
    typer.Option(
        help="Also write a blind rating sheet (CSV and HTML) to this new folder; read it back with `ratings`.", show_default=False
    ),
]
Prompting = Annotated[
    Optional[str], typer.Option(help="Also measure plain prompting: this text opens every system prompt.", show_default=False)
]
Base = Annotated[
    Optional[str],
    typer.Option(help="Compare with this model instead of with the untouched MODEL, also what changed inside.", show_default=False),
]
Embedder = Annotated[
    Optional[str],
    typer.Option(
        help="A sentence-transformers model for the similarity of prompt and reply (with --base); the base's own states otherwise.",
        show_default=False,
    ),
]
Redo = Annotated[
    bool,
    typer.Option(
        "--redo", help="Also measure each control on second thoughts: in force only where the reply without it shows the behaviour."
    ),
]


def measure(
    context: typer.Context,
    model: Model,
    behaviour: BehaviourName,
    control: Controls = None,
    target: ScoresFile = None,
    rating_sheet: RatingSheet = None,
    prompting: Prompting = None,
    base: Base = None,
    embedder: Embedder = None,
    redo: Redo = False,
    suite: SuiteNames = None,
    suite_limit: SuiteLimit = None,
    suite_folder: SuiteFolder = None,
    suite_chat: SuiteChat = False,
    device: Device = None,
    dtype: Dtype = None,
    in_4bit: In4bit = False,
    in_8bit: In8bit = False,
    reply_tokens: ReplyTokens = REPLY_TOKENS,
    max_prompts: MaxPrompts = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Measure a model on the test split, before and after each control."""
    _check_measuring(control or [], target, rating_sheet, redo, base, embedder)
    named = behaviour_named(behaviour)
    controls = {name: load_control(name) for name in control or []}
    suites = suites_asked(context, suite, suite_limit, suite_folder, suite_chat)
    session = opened(model, device, dtype, in_4bit, in_8bit, reply_tokens)
    wanted = named.settled(session)
    first = session if base is None else opened(base, device, dtype, in_4bit, in_8bit, reply_tokens)
    conditions = _speakers(session, wanted, controls, redo, prompting) or {model if base else "none": Condition(session)}
    measured = measure_all(Bench(first, wanted, max_prompts=max_prompts), conditions)
    changes = suites.compare(Condition(first), conditions) if suites else {}
    inside = (
        {}
        if base is None
        else {name: changed(Condition(first), who, measured[name].observed, embedder) for name, who in conditions.items()}
    )
    values = {name: {**each.to_json(), **_besides(name, changes, inside)} for name, each in measured.items()}
    content = next(iter(values.values())) if len(values) == 1 else values
    if target is not None:
        with new_file(target) as file:
            write_json(file, content)
    if rating_sheet is not None:
        _write_sheet(rating_sheet, wanted, next(iter(measured.values())).observed, next(iter(controls)))
    if as_json:
        print_json(content)
        return
    _show_measured(measured, f"{base or model}, {wanted.name}: test split", "then" if base else "control")
    for each in inside.values():
        out.print(changed_table(each))
    if suites:
        suites.show(changes, base or model)


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


def _speakers(
    session: Session, wanted: Behaviour, controls: Mapping[str, Control], redo: bool, prompting: str | None
) -> dict[str, Condition]:
    """Everyone who is measured beside the untouched model, by what the table calls them."""
    conditions = {name: Condition(session, each) for name, each in controls.items()}
    if redo:
        detector = make_detector(wanted.detect, session)
        conditions |= {f"{name}, where the reply shows it": Condition(session, each, redo=detector) for name, each in controls.items()}
    if prompting is not None:
        conditions[f"prompting: {prompting}"] = Condition(session, None, prompting)
    return conditions


def _check_measuring(
    control: Sequence[str], target: Path | None, rating_sheet: Path | None, redo: bool, base: str | None, embedder: str | None
) -> None:
    """Refuses what cannot be measured before anything is loaded."""
    if embedder is not None and base is None:
        raise DataError("--embedder compares what two models say; name the other one with --base.")
    if redo and not control:
        raise DataError("--redo does a reply again with a control; name one with --control.")
    if target is not None:
        refuse_folder(target)
    if rating_sheet is not None:
        refuse_existing(rating_sheet)
        if len(control) != 1:
            raise DataError("A rating sheet compares the untouched model with one control; name it with --control.")
    if len(set(control)) < len(control):
        raise DataError("A control is named twice; name each --control once.")


def _write_sheet(folder: Path, wanted: Behaviour, observed: tuple[Observation, Observation], control: str) -> None:
    sheet = write_sheet(folder, wanted, *observed, control)
    say(f"{sheet} Then: demeanor ratings {folder}")


def ratings(
    folder: Annotated[Path, typer.Argument(help="The folder that measure --rating-sheet wrote.")],
    file: Annotated[
        Optional[Path], typer.Option("--ratings", help="The file that came back, if not the folder's ratings.csv.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What the ratings of a blind sheet say: the control against the untouched model, with an interval."""
    read = read_ratings(folder, file)
    if as_json:
        print_json(read.to_json())
    else:
        print(read)
