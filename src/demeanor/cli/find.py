"""`demeanor find`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from ..behaviours import Behaviour
from ..controls import Direction, ablate, save_direction
from ..errors import DataError
from ..finding.compare import PROMPTS, compare_estimators, estimators_for
from ..finding.estimators import known_estimators
from ..finding.find import Findings, search_directions
from ..finding.plan import FindPlan, StreamPlan
from ..finding.rank import find_again, refuse_readers
from ..finding.streamed import find_streamed
from ..finding.streamed_trials import try_streamed
from ..io.atomic import kept_folder
from ..io.claims import claimed
from ..io.plan import BasePlan
from ..measure import Bench, Ledger
from ..measure.side_by_side import side_by_side
from ..models import Loading, Session, SpreadLoading, open_streamed
from ..models.kept_pass import part_of
from ..models.plan import BehaviourPlan
from ..models.streamed import larger_than_memory
from ..progress import say
from .from_model import from_plans
from .options import AsJson, print_json, show
from .outputs import Force, Target
from .sessions import behaviour_named, opened
from .tables import comparison_table, rounds_table, side_by_side_table
from .terminal import out, say_result


class ChoicePlan(BasePlan):
    """What is made of a search besides its best direction."""

    rank: int = Field(default=1, ge=1, description="number of directions in all: found, projected out, found again")
    candidates: int = Field(default=1, ge=1, description="number of best candidates that are written, their replies side by side")
    compare: bool = Field(
        default=False, description="comparison of all estimators, by what the best direction of each does when ablated (val)"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.rank > 1) + (self.candidates > 1) + self.compare > 1:
            raise ValueError(
                "`rank` raises the rank of the best direction, `candidates` and `compare` show several; use one of them at a time"
            )
        return self


@from_plans
def find(
    subject: BehaviourPlan, plan: FindPlan, choice: ChoicePlan, streaming: StreamPlan, loading: SpreadLoading, target: Target, force: Force = False, as_json: AsJson = False
) -> None:  # fmt: skip
    """The direction that carries a behaviour, found and selected."""
    large = None if streaming.stream or loading.spread else larger_than_memory(subject.model, loading)
    if large is not None:
        say(f"{large}, so it is read block by block (as with --stream).")
    if streaming.stream and loading.spread:
        raise DataError("--stream reads a model block by block in one process, and workers hold it whole; leave out --stream or --on.")
    if streaming.stream or large is not None:
        _find_streamed(subject, plan, choice, streaming.tried, loading, target, as_json)
        return
    if streaming.tried:
        raise DataError("--tried is for models that are read block by block; add --stream, or leave it out.")
    with ExitStack() as claims:
        for file in _files(target, choice.candidates)[1:]:
            claims.enter_context(claimed(file, "file", replaces=force))
        _find(subject, plan, choice, loading, target, as_json)


def _find(subject: BehaviourPlan, plan: FindPlan, choice: ChoicePlan, loading: Loading, target: Path, as_json: bool) -> None:
    named = behaviour_named(subject.behaviour)
    named.needs_prompts()
    known_estimators(plan.estimators)
    if choice.rank > 1 and plan.estimators:
        refuse_readers(plan.estimators)  # a mistake in them must not wait for the model
    session = opened(subject.model, loading)
    behaviour, ledger = named.settled(session), Ledger(session)
    estimators = estimators_for(behaviour, plan.estimators, choice.compare)
    findings = search_directions(session, behaviour, plan.model_copy(update={"estimators": estimators}), ledger=ledger)
    title = f"{behaviour.name} in {subject.model}"
    if choice.compare:
        compared = compare_estimators(Bench(session, behaviour, "val", ledger, max_prompts=PROMPTS), findings)
        save_direction(compared[0].direction, target)
        print_json([estimator.to_json() for estimator in compared]) if as_json else out.print(comparison_table(compared, title))
        return
    if choice.candidates > 1:
        _show_candidates(session, behaviour, findings, choice.candidates, target, as_json)
        return
    direction = findings.ranked()[0]
    if choice.rank > 1:
        direction = find_again(Bench(session, behaviour, "val", ledger, max_prompts=plan.max_prompts), findings, choice.rank)
    save_direction(direction, target)
    facts = _facts(direction, target, findings)
    if as_json:
        print_json({**facts, "rounds": [round_.to_json() for round_ in direction.rounds]})
        return
    show(facts, title, as_json)
    if choice.rank > 1:
        out.print(rounds_table(direction.rounds))


def _find_streamed(
    subject: BehaviourPlan, plan: FindPlan, choice: ChoicePlan, tried: int, loading: Loading, target: Path, as_json: bool
) -> None:
    named = behaviour_named(subject.behaviour)
    named.needs_prompts()
    known_estimators(plan.estimators)
    tries = next((field for field in ("rank", "candidates", "compare") if field in choice.model_fields_set), None)
    if tries is not None:
        raise DataError(f"--{tries} tries directions, and a model that is read block by block generates no replies; leave it out.")
    session = open_streamed(subject.model, loading)
    with kept_folder(target) as folder:
        findings = find_streamed(session, named, plan, folder=part_of(folder, "found"))
        if tried:
            findings = try_streamed(session, named, findings, tried, part_of(folder, "tried"), plan)
        save_direction(findings.directions[0], target)
    direction = findings.directions[0]
    did = direction.candidates[0]
    facts = {
        "site": str(direction.site), "estimator": direction.estimator, "separation": direction.separation, "auroc": direction.auroc, "gap": abs(direction.gap),
        "split_half_cosine": direction.split_half_cosine, "p": direction.p, "candidates": len(direction.candidates), "prompts": findings.counts,
        "filtered": False, "tried": sum(candidate.n > 0 for candidate in direction.candidates), **({"bypass, ablated": did.bypass, "kl": did.kl} if did.n else {}), "shows.r": direction.component("shows"), "lacks.r": direction.component("lacks"),
        "bytes read, of the files": findings.bytes_read / findings.size, "file": str(target),
    }  # fmt: skip
    show(facts, f"{direction.behaviour} in {subject.model}", as_json)


def _facts(direction: Direction, target: Path, findings: Findings) -> dict[str, Any]:
    first = next(i for i, other in enumerate(findings.directions) if (other.site, other.estimator) == (direction.site, direction.estimator))
    did = findings.candidates[first]
    return {
        "bypass, untouched": findings.untouched, "bypass, ablated": did.bypass, "induce": did.induce, "kl": did.kl, "ranked by": findings.rank_by,
        "discarded for": ", ".join(did.discarded) or "nothing",
        "site": str(direction.site), "estimator": direction.estimator, "rank": len(direction.basis), "separation": direction.separation,
        "auroc": direction.auroc, "split_half_cosine": direction.split_half_cosine, "p": direction.p, "candidates": len(direction.candidates),
        "shows.r": direction.component("shows"), "lacks.r": direction.component("lacks"), "file": str(target),
    }  # fmt: skip


def _files(target: Path, count: int) -> list[Path]:
    """The files of the best candidates: the first is the target, the others lie beside it, numbered."""
    return [target, *(target.with_name(f"{target.stem}.{number}{target.suffix}") for number in range(2, count + 1))]


def _show_candidates(session: Session, behaviour: Behaviour, findings: Findings, count: int, target: Path, as_json: bool) -> None:
    """The best directions' replies side by side; the first is written to `target`, the others beside it, numbered."""
    best = findings.ranked()[:count]
    if len(best) < count:
        say(f"Only {len(best)} candidates survived selection.")
    files = _files(target, len(best))
    rows = side_by_side(session, behaviour, {str(number): ablate(direction) for number, direction in enumerate(best, start=1)})
    for file, direction in zip(files, best):
        save_direction(direction, file)
    if as_json:
        replies = [{"set": row.set, "prompt": row.prompt.text, "replies": row.replies} for row in rows]
        print_json({"candidates": [_facts(direction, file, findings) for file, direction in zip(files, best)], "replies": replies})
        return
    out.print(side_by_side_table(rows, f"{behaviour.name}: replies on val, untouched and with each candidate ablated"))
    for number, (file, direction) in enumerate(zip(files, best), start=1):
        say_result(f"{number}: {direction.estimator}, {direction.site}, AUROC {direction.auroc:.3f}: {file}")
