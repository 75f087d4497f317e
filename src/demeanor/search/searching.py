"""The search: directions found, trials made, the front confirmed, one point of it picked and measured. One frozen plan in, one folder out.

The folder holds plan.yaml (replayable), search.json (what was resolved, every trial of the front, and the environment), scores.json,
control.safetensors (the picked point), front/ with a control file per point, study.db (where no other storage was named) and report.html.
It is made beside its target and renamed when everything is in it; until then the study lies in a hidden folder there, so that the same
command goes on after a kill.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from ..behaviours import Behaviour, behaviour
from ..controls import Control, save_control
from ..controls.control import provenance
from ..controls.files import CONTROL
from ..detect import check_detector
from ..errors import CheckFailed, DataError
from ..finding.estimators import known_estimators, named_estimators, usual_estimators
from ..finding.find import Findings, search_directions
from ..io.atomic import new_folder
from ..io.claims import claimed
from ..io.json_files import json_text, write_json, write_json_lines
from ..io.plan import PLAN
from ..job.resume import refuse_other_plan, resumable, running_folder
from ..measure import Bench, Ledger, Measurement, measure
from ..measure.plan import MeasurePlan
from ..models import Session, load
from ..progress import Stages
from .confirming import Confirmed, Front, confirm_front
from .front import knee
from .pick import picked
from .plan import SearchPlan
from .space import KINDS
from .study import DATABASE, Limits, Recorded, Study, check_extra, study_url
from .trying import Trying

RESULT = "search.json"
COSTS = ("left", "drift", "guard_lost")


@dataclass(frozen=True, kw_only=True)
class Searched:
    """A finished search. `pick` is the number of the point of the front that was measured on the test split; importance, of each cost, how
    much each axis explains; seconds, what trials took in this process and how many they were, and the whole search."""

    plan: SearchPlan
    folder: Path
    behaviour: Behaviour
    findings: Findings
    trials: tuple[Recorded, ...]
    front: Front
    pick: int
    measurement: Measurement
    importance: dict[str, dict[str, float]]
    storage: str
    structure: str
    tried: int
    trying_seconds: float
    seconds: float

    @property
    def picked(self) -> Confirmed:
        return self.front.points[self.pick]

    @property
    def control(self) -> Control:
        chosen = self.picked
        made_from = {**chosen.control.made_from, "trial": chosen.recorded.number, "picked": self.plan.pick}
        return replace(chosen.control, made_from=made_from)


def search(plan: SearchPlan, out: str | Path) -> Searched:
    """Search for the best trade-offs and write the folder `out`. One that was killed goes on where it was, and repeats no trial.

    Raises DataError when `out` exists or Optuna is not installed, NoUsableDirection or NoCandidate when there is nothing to control,
    CheckFailed, with everything written, where no point of the front is within the bounds of `pick`.
    """
    check_extra()
    out = Path(out)
    with claimed(out, "folder", replaces=False):
        refuse_other_plan(plan, out)
        return _search(plan, out)


def _search(plan: SearchPlan, out: Path) -> Searched:
    started, stages = time.monotonic(), Stages(4)
    named = behaviour(plan.behaviour)
    named.needs_prompts()
    check_detector(named)
    known_estimators(plan.estimators)
    with closing(load(plan.model, loading=plan.loading)) as session:
        about = named.settled(session)
        if about.has_replies:
            raise DataError(f"The shows and lacks of {about.name!r} are replies, and a search tries prompts; find a direction with `find`, and its dose with `dose`.")
        return _of_session(plan, out, session, about, stages, started)


def _of_session(plan: SearchPlan, out: Path, session: Session, about: Behaviour, stages: Stages, started: float) -> Searched:
    with resumable(plan, session, out) as journal:
        ledger = Ledger(session, journal)
        stages.begin("Looking for directions, gates and what is tried first.")
        names = [estimator.name for estimator in named_estimators(about, [*usual_estimators(about), *plan.estimators])]
        findings = search_directions(session, about, max_prompts=plan.max_prompts, estimators=names, ledger=ledger)
        trying = Trying(Bench(session, about, "val", ledger, max_prompts=plan.max_prompts), findings, plan)
        stages.begin(f"Trying {_amount(plan)}: {len(trying.seeds)} settings that selection would choose among, then what the study proposes.")
        limits = Limits(plan.guard if about.guard else 0.0, plan.drift)
        costs = COSTS if about.guard else COSTS[:2]
        study = Study(study_url(plan.storage, running_folder(out)), study_name(plan, session.layout.hash), costs, plan.seed, limits)
        before = len(study.recorded())
        seconds = trying.run(study)
        recorded = study.recorded()
        stages.begin("Running the front, and a few other trials, with whole replies.")
        found = confirm_front(trying, recorded, limits, plan.confirmed, plan.checked)
        pick, complaint = _picked(plan, found)
        stages.begin("Measuring the picked point on the test split.")
        measurement = measure(session, about, found.points[pick].control, MeasurePlan(max_prompts=plan.max_prompts), ledger=ledger)
        with new_folder(out) as work:
            result = Searched(
                plan=plan, folder=work, behaviour=about, findings=findings, trials=tuple(recorded), front=found, pick=pick, measurement=measurement,
                importance={cost: study.importance(number) for number, cost in enumerate(costs)}, storage=study.url if plan.storage else DATABASE,
                structure=session.layout.hash, tried=len(recorded) - before, trying_seconds=seconds, seconds=time.monotonic() - started,
            )  # fmt: skip
            _write(result, work)
            study.close()
            if plan.storage is None:
                shutil.copyfile(running_folder(out) / DATABASE, work / DATABASE)
    if complaint is not None:
        raise CheckFailed(f"{complaint} The rest of the search is in {out}, with the knee of its front in place of what was asked for.")
    return replace(result, folder=out)


def _picked(plan: SearchPlan, found: Front) -> tuple[int, str | None]:
    """The point that is taken; where the plan asks for one that is not there, the knee, and why."""
    costs = [point.costs for point in found.points]
    try:
        return picked(plan.pick, [point.values for point in found.points], costs), None
    except CheckFailed as error:
        return knee(costs), str(error)


def _amount(plan: SearchPlan) -> str:
    trials = "" if plan.most is None else f"{plan.most} trials"
    minutes = "" if plan.minutes is None else f"{plan.minutes:g} minutes"
    return " or ".join(filter(None, (trials, minutes)))


def study_name(plan: SearchPlan, structure: str) -> str:
    """The name of a study: of all searches with the same trials, and of no other."""
    # The kinds too: a study whose trials chose among others cannot go on.
    digest = sha256(json_text({**plan.space, "structure": structure, "kinds": KINDS}).encode()).hexdigest()[:12]
    return f"demeanor {Path(plan.model).name} {Path(plan.behaviour).stem} {digest}"


def _write(result: Searched, work: Path) -> None:
    from .page import write_report

    (work / PLAN).write_text(result.plan.written(), encoding="utf-8")
    write_json(work / RESULT, resolved(result))
    write_json(work / "scores.json", result.measurement.to_json())
    write_json_lines(work / "replies.jsonl", result.measurement.replies())
    save_control(result.control, work / CONTROL)
    (work / "front").mkdir()
    for number, point in enumerate(result.front.points):
        save_control(point.control, work / "front" / f"{number:02d}.safetensors")
    write_report(result, work / "report.html")


def resolved(result: Searched) -> dict[str, Any]:
    """The content of search.json: what the search found out and decided, and where it ran."""
    ranked = result.front.ranked
    return provenance(
        plan=result.plan.model_dump(mode="json"),
        study=study_name(result.plan, result.structure),
        storage=result.storage,
        structure=result.structure,
        trials=len(result.trials),
        whole=sum(trial.quick.whole for trial in result.trials),
        digest=digest(result.trials),
        spearman={"value": ranked.correlation, "n": ranked.n},
        pick=result.pick,
        front=[point.to_json() for point in result.front.points],
        confirmed=[point.to_json() for point in result.front.confirmed],
        scores={name: score.to_json()["value"] for name, score in result.measurement.after.items()},
        importance=result.importance,
        tried=result.tried,
        trying_seconds=round(result.trying_seconds, 2),
        seconds=round(result.seconds, 1),
        environment={"python": platform.python_version(), "machine": platform.machine(), "threads": torch.get_num_threads(), "optuna": _optuna()},
    )


def digest(trials: Sequence[Recorded]) -> str:
    """Of every trial's setting, in order: two searches with the same one proposed the same."""
    return sha256(repr([sorted(trial.params.items()) for trial in trials]).encode()).hexdigest()[:16]


def _optuna() -> str:
    from importlib.metadata import version

    return version("optuna")


def told(result: Searched) -> list[str]:
    """What a search says beside its tables."""
    rate = result.tried / result.trying_seconds if result.trying_seconds else 0.0
    whole = sum(trial.quick.whole for trial in result.trials)
    return [
        f"{len(result.trials)} trials ({result.tried} in this process, {rate:.1f} a second); {len(result.trials) - whole} were beaten on the first prompts.",
        f"On val, {result.front.ranked}.",
        f"Picked by {result.plan.pick}: point {result.pick} of {len(result.front.points)} ({result.picked.name}).",
    ]
