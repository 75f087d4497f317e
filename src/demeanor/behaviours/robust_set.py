"""Robust sets: prompts that nothing is ever fitted on, chosen by or tuned to. They are measured, whole, and that is all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError
from ..io.display import shown
from ..progress import warn
from .prompts import Prompt, distinct
from .schema import RobustSources

RobustSetName = Literal["guard", "shows"]
ROBUST_SETS: tuple[RobustSetName, ...] = ("guard", "shows")


@dataclass(frozen=True, kw_only=True)
class RobustSet:
    """What is asked under one name: prompts that must go on showing the behaviour, prompts that should not show it, or both."""

    name: str
    guard: tuple[Prompt, ...] = ()
    shows: tuple[Prompt, ...] = ()

    def set(self, name: RobustSetName) -> tuple[Prompt, ...]:
        return self.guard if name == "guard" else self.shows


def robust_sets(sources: Mapping[str, RobustSources], own: Sequence[Prompt], folder: Path, where: str) -> tuple[RobustSet, ...]:
    """The robust sets of a behaviour file, without the prompts that are its `own`, which are counted aloud.

    Raises DataError where that leaves nothing of a set, or a prompt stands in a guard and among what should not show the behaviour.
    """
    known = {prompt.key for prompt in own}
    made = tuple(
        RobustSet(name=name, **{of: _read(source, of, known, folder, f"{where}, robust.{name}.{of}") for of in ROBUST_SETS if getattr(source, of)})
        for name, source in sources.items()
    )
    _refuse_overlap(made, where)
    return made


def _read(source: RobustSources, name: RobustSetName, known: set[tuple[Any, ...]], folder: Path, where: str) -> tuple[Prompt, ...]:
    prompts = distinct([prompt for each in getattr(source, name) for prompt in each.read(folder, where)], where)
    kept = tuple(prompt for prompt in prompts if prompt.key not in known)
    if not kept:
        raise DataError(f"{where}: each of its prompts ({len(prompts)}) stands in the behaviour's own sets too; give prompts that do not.")
    if len(kept) < len(prompts):
        warn(f"{where}: {len(prompts) - len(kept)} of {len(prompts)} prompts stand in the behaviour's own sets too and are left out here.")
    return kept


def _refuse_overlap(made: Sequence[RobustSet], where: str) -> None:
    guard = {prompt.key: each.name for each in made for prompt in each.guard}
    for each in made:
        both = next((prompt for prompt in each.shows if prompt.key in guard), None)
        if both is not None:
            raise DataError(
                f"{where}: {shown(both.text)} stands in both robust.{guard[both.key]}.guard and robust.{each.name}.shows; keep it in one of them."
            )
