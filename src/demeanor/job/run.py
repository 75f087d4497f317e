"""The main job: find, select, confirm, measure, bake, report. One frozen plan in, one run folder out.

The folder holds plan.yaml (replayable), run.json (what was resolved, and the environment), scores.json,
replies.jsonl, control.safetensors, direction.safetensors, dial.safetensors, report.html and, where weights can do exactly
what the control does, model/; where they cannot, bakeable.safetensors, and permanent/ where an adapter was to learn it. It is
made beside its target and renamed when everything is in it.
"""

from __future__ import annotations

import math
import platform
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..behaviours import SET_NAMES, Behaviour, behaviour
from ..calibrate.dial import dial, doses
from ..controls import Control, save_control, save_direction
from ..controls.control import provenance
from ..controls.files import CONTROL
from ..detect import check_detector
from ..errors import CheckFailed, ControlError, ModelError
from ..export import Baked, bake
from ..export.card import add_results
from ..finding.estimators import known_estimators, named_estimators, usual_estimators
from ..finding.find import Findings, search_directions
from ..io.atomic import new_folder
from ..io.claims import claimed
from ..io.json_files import write_json, write_json_lines
from ..io.plan import PLAN
from ..measure import Bench, Ledger, Measurement, measure
from ..measure.plan import MeasurePlan
from ..models import Reply, Session, SpreadSession, load
from ..progress import Stages, say, warn
from ..report.sentence import in_words
from ..train.learner import check_extras
from .confirm import confirm
from .decision import Decision, Option
from .page import write_report
from .permanent import FOLDER as PERMANENT
from .permanent import distilled
from .plan import Plan
from .result import Parity, Run
from .resume import refuse_other_plan, resumable, running_folder

DOSES = 9  # of a small model's dial
COMPARED = 64  # replies of a large model after baking, besides its logits on all test prompts
BAKEABLE = "bakeable.safetensors"  # the best control that weights can do exactly, where the chosen one is another


def run(plan: Plan, out: str | Path) -> Run:
    """Do the main job and write the run folder `out`. One that was killed goes on where it was.

    Raises DataError when `out` exists, NoUsableDirection or NoCandidate when there is nothing to control,
    CheckFailed when the baked model does not do what the control does.
    """
    out = Path(out)
    with claimed(out, "folder", replaces=False):
        refuse_other_plan(plan, out)
        return _run(plan, out)


def _run(plan: Plan, out: Path) -> Run:
    started = time.monotonic()
    named = behaviour(plan.behaviour)
    named.needs_prompts()
    check_detector(named)
    known_estimators(plan.estimators)
    if plan.permanent:
        check_extras()
    stages = Stages(5 + (plan.doses != 0))
    stages.begin(f"Loading {plan.model}.")
    with closing(load(plan.model, loading=plan.loading)) as session, resumable(plan, session, out) as journal:
        say(f"{plan.model}: {session.layout.n_layers} layers, {session.proof}; worst residual {session.layout.worst_residual:.0e}.")
        job = _Job(plan, out, named.settled(session), Ledger(session, journal), stages)
        findings = _found(job)
        stages.begin("Trying the best controls on the val split.")
        val = Bench(session, job.behaviour, "val", job.ledger, max_prompts=plan.max_prompts)
        decision = confirm(val, findings, false_positives=plan.false_positives, max_prompts=plan.max_prompts, with_edits=plan.selective)
        with new_folder(out) as work:
            result = replace(_measured(job, findings, decision, work), seconds=time.monotonic() - started)
            _write(result, job.ledger, work)
    if result.parity is not None and not result.parity.exact:
        raise CheckFailed(f"{result.parity.complaint} The rest of the run is in {out}, without model/.")
    baked = replace(result.baked, folder=out / "model") if result.baked else None
    return replace(result, folder=out, baked=baked)


@dataclass(frozen=True)
class _Job:
    """What every stage needs: the plan and its target, the behaviour, and the untouched model."""

    plan: Plan
    out: Path
    behaviour: Behaviour
    ledger: Ledger
    stages: Stages

    @property
    def session(self) -> Session:
        return self.ledger.session

    def measured(self, control: Control, robust: bool = False) -> Measurement:
        """On the test split; with `robust`, worded otherwise too, if the plan says so."""
        plan = MeasurePlan(max_prompts=self.plan.max_prompts, battery=self.plan.battery, robust=robust and self.plan.robust)
        return measure(self.session, self.behaviour, control, plan, ledger=self.ledger)


def _found(job: _Job) -> Findings:
    job.stages.begin("Looking for directions: prompts filtered by what the model does, the stream captured, candidates tried.")
    plan = job.plan
    names = [estimator.name for estimator in named_estimators(job.behaviour, [*usual_estimators(job.behaviour), *plan.estimators])]
    findings = search_directions(
        job.session, job.behaviour, layer=plan.layer, max_prompts=plan.max_prompts, rank_by=plan.rank_by, trying=plan.trying, estimators=names, ledger=job.ledger
    )  # fmt: skip
    for name, count in findings.sets.counts.items():
        say(f"{name}: {count['kept']} of {count['given']} train and val prompts behave as the set says.")
    return findings


def _measured(job: _Job, findings: Findings, decision: Decision, work: Path) -> Run:
    """The test split, touched once: the chosen control, what is permanent in its place, and the best bakeable one."""
    plan, control = job.plan, _described(decision.chosen)
    job.stages.begin("Measuring the chosen control on the test split.")
    measurement, exact = job.measured(control, robust=True), control.bakeable() is None
    other = None if exact or decision.best_bakeable is None else job.measured(decision.best_bakeable.control)
    job.stages.begin(
        "Writing the model, and comparing it with the control." if exact or plan.permanent else "Nothing to write into the weights."
    )
    weights, permanent = (control, None) if exact else _permanent(job, control, work) if plan.permanent else (None, None)
    baked, parity, reason = _in_weights(job, weights, permanent or measurement, work) if weights else (None, None, None)
    turned = None
    count = DOSES if plan.doses is None and job.session.runner.small else plan.doses
    if count:
        job.stages.begin("Measuring every dose of the dial.")
        turned = dial(job.session, job.behaviour, findings, doses(count), plan.max_prompts, job.ledger)
    elif count is None:
        job.stages.begin(f"No dial: it takes a model of this size minutes, so it is measured where it is asked for (--doses {DOSES}).")
    return Run(
        plan=plan,
        folder=work,
        behaviour=job.behaviour,
        found=findings,
        decision=decision,
        control=control,
        measurement=measurement,
        bakeable=other,
        baked=baked,
        not_baked=reason,
        permanent=permanent,
        parity=parity,
        dial=turned,
        seconds=0.0,
    )


def _permanent(job: _Job, control: Control, work: Path) -> tuple[Control, Measurement]:
    """The adapter that learned to do what the control does, put beside it, and what it does on the test split."""
    folder = running_folder(job.out) / PERMANENT
    adapter = distilled(job.plan, control, job.out / CONTROL, folder)
    shutil.copytree(folder, work / PERMANENT)
    return adapter, job.measured(adapter)


def _in_weights(job: _Job, control: Control, measurement: Measurement, work: Path) -> tuple[Baked | None, Parity | None, str | None]:
    """The model with a control in it, compared with the control at run time; or why its files cannot take it."""
    baked, reason = _baked(job.plan.model, control, work / "model")
    parity = _parity(job.plan, job.session, control, measurement, work / "model") if baked else None
    if parity is not None and not parity.exact:
        shutil.rmtree(work / "model")  # it is not what the scores describe
    elif baked:
        add_results(work / "model" / "README.md", in_words(measurement, job.behaviour))
    return baked, parity, reason


def _baked(model: str, control: Control, folder: Path) -> tuple[Baked | None, str | None]:
    """The control in the model's files, or why these files cannot take it: what was measured is not lost over that."""
    try:
        return bake(model, control, folder), None
    except (ControlError, ModelError) as error:
        warn(f"Not baked: {error}")
        return None, str(error)


def _parity(plan: Plan, session: Session, control: Control, measurement: Measurement, folder: Path) -> Parity | None:
    try:
        return check_parity(session, load(folder, loading=plan.here), control, measurement)
    except torch.OutOfMemoryError:
        warn("There is no memory for a second model, so the baked one was not compared with the control; try it with --device cpu.")
        return None


def _described(option: Option) -> Control:
    """The option's control, which says of itself how it was chosen."""
    control = option.control
    return replace(control, made_from={**control.made_from, "chosen": str(option), "guard": option.guard_rate})


def check_parity(session: Session, baked: Session, control: Control, measurement: Measurement) -> Parity:
    """The baked model, loaded afresh as the first one was in this process, against the control at run time: logits on the test prompts, and replies
    (of a large model to some of them, from every set). The workers of a session that has some are ended by it."""
    # A prompt may stand in two sets; it is asked once.
    by_tokens = {tuple(session.encode(each.prompt)): each for name in SET_NAMES for each in measurement.observed[1].sets[name]}
    outcomes = list(by_tokens.values())
    prompts = [outcome.prompt for outcome in outcomes]
    again = outcomes if session.runner.small else outcomes[:: -(-len(outcomes) // COMPARED)]
    asked, length = [outcome.prompt for outcome in again], max(len(outcome.reply.ids) for outcome in again)
    said: Sequence[Reply] = [outcome.reply for outcome in again]
    if isinstance(session, SpreadSession):
        session.close()  # both models are asked here then: workers may have other devices
    with session.controlled(control):
        expected = session.logits(prompts)
        if isinstance(session, SpreadSession):
            said = session.generate(asked, length)
    worst = float((baked.logits(prompts) - expected).abs().max() / expected.std())
    same = sum(reply.text == own.text for reply, own in zip(baked.generate(asked, length), said))
    return Parity(worst, same, len(again), session.dtype_name)


def _write(result: Run, ledger: Ledger, work: Path) -> None:
    (work / PLAN).write_text(result.plan.written(), encoding="utf-8")
    write_json(work / "scores.json", scores(result))
    write_json(work / "run.json", resolved(result))
    save_control(result.control, work / CONTROL)
    write_json_lines(work / "replies.jsonl", result.measurement.replies())
    if result.bakeable is not None and result.decision.best_bakeable is not None:
        save_control(_described(result.decision.best_bakeable), work / BAKEABLE)
    save_direction(result.direction, work / "direction.safetensors")
    if result.dial is not None:
        save_control(result.dial.control, work / "dial.safetensors")
    write_report(result, ledger, work / "report.html")


def scores(result: Run) -> dict[str, Any]:
    """The content of scores.json."""
    values = result.measurement.to_json()
    if result.bakeable is not None:
        values["best_bakeable"] = {"control": str(result.decision.best_bakeable), **result.bakeable.to_json()}
    if result.permanent is not None:
        values["permanent"] = result.permanent.to_json()
    return values


def resolved(result: Run) -> dict[str, Any]:
    """What the run found out and decided, and where it ran."""
    direction = result.direction
    return provenance(
        plan=result.plan.model_dump(),
        control=str(result.control),
        why=result.decision.why(),
        agreement={"spearman": None if math.isnan(told := result.decision.agreement.correlation) else told, "n": result.decision.agreement.n},
        counts=result.found.sets.counts,
        test_prompts={name: len(result.behaviour.set(name, "test", result.plan.max_prompts)) for name in SET_NAMES},
        direction={
            "site": str(direction.site), "estimator": direction.estimator, "rank": len(direction.basis), "separation": direction.separation,
            "auroc": direction.auroc, "split_half_cosine": direction.split_half_cosine, "p": direction.p,
            "shows.r": direction.component("shows"), "lacks.r": direction.component("lacks"),
        },
        rounds=[r.to_json() for r in result.decision.rounds],
        options=[{"option": str(o), "merit": o.merit, "shows_rate": o.shows_rate, "engaged_shows": o.trial.rate("engaged_shows"),
                  "guard_rate": o.guard_rate, "answers_shows": o.answers_shows,
                  "answers_neutral": o.answers_neutral} for o in result.decision.options],
        layout={"hash": direction.layout.hash, "worst_residual": direction.layout.worst_residual},
        baked=None if result.baked is None else {"edited": result.baked.edited, "tensors": result.baked.tensors},
        parity=None if result.parity is None else {**vars(result.parity), "exact": result.parity.exact},
        dial=None if result.dial is None else result.dial.to_json(),
        seconds=round(result.seconds, 1),
        environment={"python": platform.python_version(), "machine": platform.machine(), "threads": torch.get_num_threads()},
    )  # fmt: skip
