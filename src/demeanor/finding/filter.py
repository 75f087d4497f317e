"""The prompts a search works on: those of the train and val splits on which the model does what their set says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..behaviours import Behaviour, Prompt, SetName
from ..behaviours.prompts import Split
from ..detect import present
from ..errors import DataError
from ..measure.bench import Bench
from ..progress import say

FEWEST = 16  # prompts of a set that must be left, train and val together
FEWEST_VAL = 4
OF_CLASSES: tuple[SetName, ...] = ("shows", "lacks", "guard")
BEFORE_TEST: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True)
class Sets:
    """Train and val prompts that the model treats as their set says, and how many there were before."""

    train: dict[str, list[Prompt]]
    val: dict[str, list[Prompt]]
    counts: dict[str, dict[str, int]]

    @property
    def replied(self) -> bool:
        """Whether `shows` and `lacks` come with the replies that are read, instead of the ends of prompts."""
        return all(prompt.reply is not None for split in (self.train, self.val) for name in ("shows", "lacks") for prompt in split[name])


def filter_prompts(bench: Bench, max_prompts: int | None = None) -> Sets:
    """`shows` and `guard` prompts on which the model exhibits the behaviour, `lacks` prompts on which it does not.

    Train and val only. Where `shows` and `lacks` are replies, they are taken as they are given; where they are pairs, a
    row stays only with its partner. Raises DataError when fewer than 16 are left of a set.
    """
    behaviour, sets = bench.behaviour, Sets({}, {}, {})
    heard: dict[SetName, _Heard] = {}
    for name, wanted in (("shows", True), ("guard", True), ("lacks", False)):
        prompts = [prompt for split in ("train", "val") for prompt in behaviour.set(name, split, max_prompts)]  # type: ignore[arg-type]
        if prompts or name != "guard":
            given = behaviour.has_replies and name != "guard"
            heard[name] = _as_given(prompts) if given else _heard(bench, prompts, wanted)  # type: ignore[index]
    if behaviour.pairs:
        if len(heard["shows"].fits) != len(heard["lacks"].fits):
            raise _uneven(behaviour)
        both = [one and other for one, other in zip(heard["shows"].fits, heard["lacks"].fits, strict=True)]
        heard |= {name: replace(heard[name], fits=both) for name in ("shows", "lacks")}
    for name, replied in heard.items():
        kept = [prompt for prompt, fit in zip(replied.prompts, replied.fits) if fit]
        sets.train[name], sets.val[name] = ([prompt for prompt in kept if prompt.split == split] for split in ("train", "val"))
        sets.counts[name] = {"given": len(replied.prompts), "kept": len(kept)}
        if not _enough(kept):
            raise DataError(_too_few(bench.session.name, name, kept, replied, behaviour.pairs))
    return sets


def with_own_replies(bench: Bench, sets: Sets) -> Sets:
    """The same sets, `shows` and `lacks` with what the model says to them.

    Prompts to which it says nothing are left out (with their partners, where they are pairs), and told. Raises DataError when too few are left.
    """
    paired, kept, silent = bench.behaviour.pairs, (dict(sets.train), dict(sets.val)), 0
    for split in kept:
        said = {name: [reply.text for reply in bench.ledger.replies(split[name], bench.budget)] for name in ("shows", "lacks")}
        spoke = {name: [bool(text.strip()) for text in texts] for name, texts in said.items()}
        if paired:
            both = [one and other for one, other in zip(*spoke.values(), strict=True)]
            spoke = dict.fromkeys(spoke, both)
        for name, texts in said.items():
            split[name] = [replace(prompt, reply=text) for prompt, text, some in zip(split[name], texts, spoke[name]) if some]
            silent += len(texts) - len(split[name])
    if silent:
        say(f"{silent} prompts are left out, because the model's reply to them{' or to their partners' if paired else ''} is empty.")
    counts = {name: {**count, "kept": len(kept[0][name]) + len(kept[1][name])} for name, count in sets.counts.items()}
    for name in ("shows", "lacks"):
        if not _enough([*kept[0][name], *kept[1][name]]):
            raise DataError(f"Only {counts[name]['kept']} prompts in {name!r} get a reply that says something, and at least {FEWEST} are needed ({FEWEST_VAL} in val); use other prompts, or read them at their ends.")
    return Sets(*kept, counts)


def as_given(behaviour: Behaviour, max_prompts: int | None = None) -> Sets:
    """All train and val prompts, whatever the model does with them. Raises DataError when a set has fewer than 16."""
    sets = Sets({}, {}, {})
    for name in OF_CLASSES:
        train, val = (behaviour.set(name, split, max_prompts) for split in BEFORE_TEST)
        if not train and not val and name == "guard":
            continue
        if not _enough([*train, *val]):
            raise DataError(_too_few("", name, [], _as_given([*train, *val]), behaviour.pairs))
        sets.train[name], sets.val[name] = list(train), list(val)
        sets.counts[name] = {"given": len(train) + len(val), "kept": len(train) + len(val)}
    if behaviour.pairs and [len(part["shows"]) for part in (sets.train, sets.val)] != [len(part["lacks"]) for part in (sets.train, sets.val)]:
        raise _uneven(behaviour)
    return sets


@dataclass(frozen=True)
class _Heard:
    """Prompts, what was said to them (empty for replies taken as given), and whether that is what their set says."""

    prompts: list[Prompt]
    replies: list[str]
    fits: list[bool]


def _heard(bench: Bench, prompts: list[Prompt], exhibits: bool) -> _Heard:
    replies = [reply.text for reply in bench.ledger.replies(prompts, bench.budget)] if prompts else []
    return _Heard(prompts, replies, [shown == exhibits for shown in present(bench.detector, replies, prompts)])


def _as_given(prompts: list[Prompt]) -> _Heard:
    return _Heard(prompts, [], [True] * len(prompts))


def _uneven(behaviour: Behaviour) -> DataError:
    return DataError(f"The pairs of {behaviour.name!r} do not correspond: its shows and lacks have different numbers of train and val prompts.")


def _too_few(model: str, name: str, kept: Sequence[Prompt], heard: _Heard, paired: bool) -> str:
    """What is wrong with a set, and what would mend it: too few prompts are another thing than prompts on which the model does otherwise."""
    needed = f"at least {FEWEST} ({FEWEST_VAL} in val) are needed"
    given, exhibits = heard.prompts, name != "lacks"
    if not _enough(given):
        in_val = sum(prompt.split == "val" for prompt in given)
        return (
            f"The set {name!r} has {len(given)} train and val prompts, {in_val} of them in val (a quarter of a set is kept for the test); {needed}, so give it more."
        )
    does = "shows" if exhibits else "does not show"
    example = f"; to {given[0].text!r}, for one, it says {heard.replies[0][:80]!r}" if heard.replies else ""
    if not kept and heard.replies and not paired:
        found = "in none of" if exhibits else "in all of"
        return (
            f"The set {name!r} has enough prompts ({len(given)} in train and val), but the detector finds the behaviour {found} the replies of {model} to them;"
            f" use a detector that knows how this model says it, or other prompts{example}."
        )
    in_val = sum(prompt.split == "val" for prompt in kept)
    return (
        f"Only {len(kept)} of {len(given)} train and val prompts in {name!r} are left on which {model} {does} the behaviour ({in_val} in val), and"
        f" {needed}; use other prompts, or a detector that knows how this model says it{example}."
    )


def _enough(prompts: Sequence[Prompt]) -> bool:
    in_val = sum(prompt.split == "val" for prompt in prompts)
    return len(prompts) >= FEWEST and in_val >= FEWEST_VAL and len(prompts) - in_val >= FEWEST_VAL
