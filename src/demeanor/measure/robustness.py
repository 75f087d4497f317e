"""Robustness: the guard and the gain of a control where prompts are worded otherwise than those that anything was fitted on.

There are the built-in rewordings of a bench's own prompts, and the sets that a behaviour names as `robust`. Each is a bench of its own,
so the untouched model is asked once whatever number of conditions is measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain

from ..behaviours import ROBUST_SETS, Behaviour, Prompt, RobustSetName, SetName
from ..behaviours.prompts import sampled
from ..errors import DataError
from ..models import Session
from ..progress import warn
from .bench import Bench
from .observation import Observation
from .rewording import REWORDINGS

NAME = "robust"
Seen = Mapping[str, tuple[Observation, Observation]]  # by rewording: what was said to it before and after


def refuse_taken_names(behaviour: Behaviour) -> None:
    """Raises DataError where a robust set is called as a built-in rewording, whose scores it would hide."""
    taken = next((each.name for each in behaviour.robust if each.name in REWORDINGS), None)
    if taken is not None:
        raise DataError(
            f"The robust set {taken!r} of {behaviour.name!r} has the name of a built-in rewording ({', '.join(REWORDINGS)}); give it another."
        )


def reworded(bench: Bench, max_prompts: int | None = None) -> dict[str, Bench]:
    """A bench for every rewording by name: the built-in ones of the bench's own prompts, then the behaviour's robust sets, whole.

    Prompts that reworded are still one of the behaviour's, or that the model is too short for, are left out and counted aloud. Raises
    DataError for a robust set that is called as a rewording, or holds a prompt that the model is too short for.
    """
    behaviour = bench.behaviour
    refuse_taken_names(behaviour)
    known = {prompt.key for prompt in behaviour.all_prompts()}
    left_out: Counter[str] = Counter()
    sets: dict[str, dict[SetName, Sequence[Prompt]]] = {}
    for name, reword in REWORDINGS.items():
        sets[name] = {of: _new([reword(prompt) for prompt in bench.prompts[of]], known, bench.session, left_out) for of in ROBUST_SETS}
    _tell(left_out, len(REWORDINGS) * sum(len(bench.prompts[of]) for of in ROBUST_SETS), bench.session)
    for own in behaviour.robust:
        sets[own.name] = {of: sampled(own.set(of), max_prompts) for of in ROBUST_SETS}
        for prompt in chain(*sets[own.name].values()):
            bench.session.encode(prompt)  # refuses what is too long, before anything is asked
    return {name: bench.on(prompts) for name, prompts in sets.items()}


def _new(prompts: Sequence[Prompt], known: set[tuple[object, ...]], session: Session, left_out: Counter[str]) -> list[Prompt]:
    """Reworded prompts that are new, each once, and short enough; the others are counted."""
    kept: dict[tuple[object, ...], Prompt] = {}
    for prompt in prompts:
        if prompt.key in known or prompt.key in kept:
            left_out["known"] += 1
        elif not _fits(prompt, session):
            left_out["long"] += 1
        else:
            kept[prompt.key] = prompt
    return list(kept.values())


def _fits(prompt: Prompt, session: Session) -> bool:
    """Whether the model takes it. The prompt was taken before it was reworded, so that its length is all that can be wrong."""
    try:
        session.encode(prompt)
    except DataError:
        return False
    return True


def _tell(left_out: Mapping[str, int], of: int, session: Session) -> None:
    reasons = {
        "known": "would stand among the behaviour's prompts, or twice among the reworded ones",
        "long": f"would be longer than {session.name} takes",
    }
    told = " and ".join(f"{left_out[reason]} {why}" for reason, why in reasons.items() if left_out[reason])
    if told:
        warn(f"{sum(left_out.values())} of {of} rewordings of prompts are left out: {told}.")


def paired(seen: Seen, name: RobustSetName) -> dict[str, tuple[list[bool], list[bool]]]:
    """Whether replies to one set show the behaviour, before and after, as scores by name: all rewordings together, then each."""
    each = {rewording: (was.shown(name), now.shown(name)) for rewording, (was, now) in seen.items()}
    whole = (list(chain(*(was for was, _ in each.values()))), list(chain(*(now for _, now in each.values()))))
    return {f"{name}_{NAME}": whole} | {f"{name}_{rewording}": pair for rewording, pair in each.items()}


def worst(seen: Seen, name: RobustSetName) -> str | None:
    """The rewording under which the guard falls most, or the one that leaves most of the behaviour; None where there is no such."""
    shares = {
        rewording: (sum(was.shown(name)) / len(was.shown(name)), sum(now.shown(name)) / len(now.shown(name)))
        for rewording, (was, now) in seen.items()
        if was.shown(name)
    }
    badness = {
        rewording: (was - now, -now) if name == "guard" else (now, now - was)
        for rewording, (was, now) in shares.items()
    }  # fmt: skip
    found = max(badness, key=badness.__getitem__, default=None)
    return found if found is not None and badness[found][0] > 0 else None
