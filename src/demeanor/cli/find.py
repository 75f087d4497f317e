"""`demeanor find`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..behaviours import Behaviour
from ..controls import Direction, ablate, save_direction
from ..errors import DataError
from ..finding.compare import PROMPTS, compare_estimators, estimators_for
from ..finding.estimators import ESTIMATORS
from ..finding.find import Findings, search_directions
from ..finding.rank import find_again, refuse_readers
from ..finding.select import rank_by_named
from ..io.atomic import refuse_folder
from ..measure import Bench, Ledger
from ..measure.side_by_side import side_by_side
from ..models import Session
from ..models.session import REPLY_TOKENS
from ..progress import say
from .options import (
    AsJson,
    BehaviourName,
    Device,
    Dtype,
    In4bit,
    In8bit,
    Layer,
    MaxPrompts,
    Model,
    RankByOption,
    ReplyTokens,
    Target,
    behaviour_named,
    opened,
    out,
    print_json,
    show,
)
from .tables import comparison_table, rounds_table, side_by_side_table


def find(
    model: Model,
    behaviour: BehaviourName,
    target: Target,
    layer: Layer = None,
    rank_by: RankByOption = None,
    estimator: Annotated[
        Optional[list[str]],
        typer.Option(
            help=f"Try this estimator instead of the usual ones: {', '.join(ESTIMATORS.own_names())}, that of a package, or FILE.py:NAME; repeat for several.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Try all estimators and print what the best of each does when ablated (val).")
    ] = False,
    rank: Annotated[int, typer.Option(min=1, help="Find, project out, find again, up to this many directions in all.")] = 1,
    candidates: Annotated[
        int, typer.Option(min=1, help="Print the replies of this many best candidates side by side, and write them all.")
    ] = 1,
    device: Device = None,
    dtype: Dtype = None,
    in_4bit: In4bit = False,
    in_8bit: In8bit = False,
    reply_tokens: ReplyTokens = REPLY_TOKENS,
    max_prompts: MaxPrompts = None,
    as_json: AsJson = False,
) -> None:
    """Find and select the direction that carries a behaviour."""
    refuse_folder(target)
    if (rank > 1) + (candidates > 1) + compare > 1:
        raise DataError("--rank raises the rank of the best direction, --candidates and --compare show several; use one of them at a time.")
    named, by = behaviour_named(behaviour), rank_by_named(rank_by)
    named.needs_prompts()
    if rank > 1 and estimator:
        refuse_readers(estimator)  # a mistake in them must not wait for the model
    session = opened(model, device, dtype, in_4bit, in_8bit, reply_tokens)
    wanted = named.settled(session)
    tried = estimators_for(wanted, estimator, compare)
    ledger = Ledger(session)
    found = search_directions(session, wanted, layer=layer, max_prompts=max_prompts, rank_by=by, estimators=tried, ledger=ledger)
    if compare:
        contest = compare_estimators(Bench(session, wanted, "val", ledger, max_prompts=PROMPTS), found)
        save_direction(contest[0].direction, target)
        print_json([each.to_json() for each in contest]) if as_json else out.print(comparison_table(contest, f"{wanted.name} in {model}"))
        return
    if candidates > 1:
        _show_candidates(session, wanted, found, candidates, target, as_json)
        return
    direction = find_again(Bench(session, wanted, "val", ledger, max_prompts=max_prompts), found, rank) if rank > 1 else found.ranked()[0]
    save_direction(direction, target)
    facts = _facts(direction, target, found)
    if as_json:
        print_json({**facts, "rounds": [r.to_json() for r in direction.rounds]})
        return
    show(facts, f"{wanted.name} in {model}", as_json)
    if rank > 1:
        out.print(rounds_table(direction.rounds))


def _facts(direction: Direction, target: Path, found: Findings) -> dict[str, Any]:
    first = next(i for i, other in enumerate(found.directions) if (other.site, other.estimator) == (direction.site, direction.estimator))
    did = found.candidates[first]
    return {
        "bypass, untouched": found.untouched, "bypass, ablated": did.bypass, "induce": did.induce, "kl": did.kl, "ranked by": found.rank_by,
        "discarded for": ", ".join(did.discarded) or "nothing",
        "site": str(direction.site), "estimator": direction.estimator, "rank": len(direction.basis), "separation": direction.separation,
        "auroc": direction.auroc, "split_half_cosine": direction.split_half_cosine, "p": direction.p, "candidates": len(direction.candidates),
        "shows.r": direction.component("shows"), "lacks.r": direction.component("lacks"), "file": str(target),
    }  # fmt: skip


def _show_candidates(session: Session, wanted: Behaviour, found: Findings, count: int, target: Path, as_json: bool) -> None:
    """The best directions' replies side by side; the first is written to `target`, the others beside it, numbered."""
    best: Sequence[Direction] = found.ranked()[:count]
    if len(best) < count:
        say(f"Only {len(best)} candidates survived selection.")
    files = [target if number == 1 else target.with_name(f"{target.stem}.{number}{target.suffix}") for number in range(1, len(best) + 1)]
    said = side_by_side(session, wanted, {str(number): ablate(direction) for number, direction in enumerate(best, start=1)})
    for file, direction in zip(files, best):
        save_direction(direction, file)
    if as_json:
        rows = [{"set": row.set, "prompt": row.prompt.text, "replies": row.replies} for row in said]
        print_json({"candidates": [_facts(direction, file, found) for file, direction in zip(files, best)], "replies": rows})
        return
    out.print(side_by_side_table(said, f"{wanted.name}: replies on val, untouched and with each candidate ablated"))
    for number, (file, direction) in enumerate(zip(files, best), start=1):
        out.print(
            f"{number}: {direction.estimator}, {direction.site}, AUROC {direction.auroc:.3f}: {file}", highlight=False, soft_wrap=True
        )
