"""The controls that a server offers, by name, and what a request makes of them.

An expression is a sum of named controls with doses, each perhaps behind the gates of another: "0.5 less-refusal + 0.3 warm
@when:selective". What cannot be done is refused before anything is generated.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from torch import Tensor

from ..controls import Control, digest, load_control
from ..controls.gate import Gate
from ..errors import ControlError, DataError, did_you_mean
from ..export.measured import measured
from ..io.tensors import read_tensors
from ..models import Session
from .engine import Steer

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
WORDS = re.compile(
    r"\s*([+-])?\s*(?:(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)\s*\*?\s*)?([A-Za-z][A-Za-z0-9._-]*)(?:\s*@when:(!?)([A-Za-z0-9][A-Za-z0-9._-]*))?\s*"
)
MOST_TERMS = 16
MOST_CONTROLS = 256


class Unknown(ControlError):
    """There is no control of that name."""


@dataclass(frozen=True)
class Named:
    """A control on the shelf: what it does, at what dose unless a request says another, and its hash."""

    name: str
    control: Control
    dose: float
    digest: str
    measured: tuple[str, ...] = ()  # sentences of the run that made it

    @property
    def gates(self) -> tuple[Gate, ...]:
        return tuple(dict.fromkeys(gate for part in self.control.parts for gate in part.gates))

    @property
    def direction(self) -> Tensor:
        """Its first direction [d_model]. Raises ControlError where it has none, as a selective edit and an adapter."""
        part = next(iter(self.control.parts), None)
        if part is None:
            raise ControlError(f"The control {self.name!r} is an adapter or holds states, and has no direction to project on; name another control.")
        vectors: Tensor = part.vectors if part.read is None else part.read
        return vectors[0]

    def told(self) -> dict[str, Any]:
        gates = [str(gate) for gate in self.gates]
        return {"id": self.name, "object": "control", "dose": self.dose, "hash": self.digest, "does": str(self.control), "gates": gates, "measured": list(self.measured)}


@dataclass(frozen=True)
class Term:
    """One summand of an expression; a dose of None is the control's own."""

    name: str
    dose: float | None = None
    when: str | None = None
    negated: bool = False


class Shelf:
    """Named controls of one session; any thread may ask and change."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._named: dict[str, Named] = {}
        self._lock = threading.Lock()

    def __iter__(self) -> Any:
        with self._lock:
            return iter(list(self._named.values()))

    def put(self, name: str, control: Control, dose: float = 1.0, measured: tuple[str, ...] = ()) -> Named:
        """Another control under a name. Raises ControlError where it is for another structure or cannot be served."""
        if NAME.fullmatch(name) is None:
            raise DataError(f"{name[:80]!r} is no name of a control; use letters, digits, dots, dashes and underscores, 64 at most.")
        control.scaled(dose)
        self.session.slot(control)
        named = Named(name, control, dose, digest(control), measured)
        with self._lock:
            if name not in self._named and len(self._named) >= MOST_CONTROLS:
                raise DataError(f"There are {MOST_CONTROLS} controls already; remove one first.")
            self._named[name] = named
        return named

    def add_file(self, name: str, path: str | Path) -> Named:
        """From a control file, FILE or FILE:DOSE; the dose becomes what the control has unless a request says another."""
        return self.put(name, load_control(path), measured=measured(path))

    def add_upload(self, name: str, path: Path, dose: float = 1.0) -> Named:
        """From a file that somebody sent: a control file of this project's format, and nothing else."""
        if NAME.fullmatch(name) is None:  # before the file is looked at
            raise DataError(f"{name[:80]!r} is no name of a control; use letters, digits, dots, dashes and underscores, 64 at most.")
        read_tensors(path, "control")
        return self.put(name, load_control(path), dose)

    def get(self, name: str) -> Named:
        with self._lock:
            named, known = self._named.get(name), list(self._named)
        if named is None:
            raise Unknown(f"There is no control {name[:80]!a}{did_you_mean(name, known)}; GET /v1/controls lists those that there are.")
        return named

    def turn(self, name: str, dose: float) -> Named:
        """Another dose where requests say none."""
        named = self.get(name)
        return self.put(name, named.control, dose, named.measured)

    def remove(self, name: str) -> None:
        """Requests that run keep it to their end."""
        self.get(name)
        with self._lock:
            self._named.pop(name, None)

    def steer(self, terms: Sequence[Term]) -> Steer | None:
        """What terms do together, in their order; None where they change nothing."""
        if len(terms) > MOST_TERMS:
            raise ControlError(f"A request takes {MOST_TERMS} controls at most, not {len(terms)}.")
        parts: list[tuple[Control, str, dict[str, Any]]] = []
        for term in terms:
            named = self.get(term.name)
            dose = named.dose if term.dose is None else term.dose
            control = named.control.scaled(dose)
            when = None if term.when is None else self._gates(term.when)
            for gate in when or ():
                control = control.when(~gate if term.negated else gate)
            if dose != 0:
                sign = "" if when is None else f"@{'!' if term.negated else ''}{self.get(str(term.when)).digest}"
                told = {"name": named.name, "hash": named.digest, "dose": dose}
                parts.append(
                    (
                        control,
                        f"{named.digest}:{dose!r}{sign}",
                        told if when is None else {**told, "when": f"{'!' * term.negated}{term.when}"},
                    )
                )
        if not parts:
            return None
        control = reduce(Control.then, (control for control, _, _ in parts))
        return Steer(control=control, key="+".join(key for _, key, _ in parts), told=tuple(told for _, _, told in parts))

    def steer_with(self, named: Named, control: Control, how: str) -> Steer:
        """Something made of a named control, told apart from others by `how`."""
        return Steer(control=control, key=f"{named.digest}/{how}", told=({"name": named.name, "hash": named.digest, "how": how},))

    def _gates(self, name: str) -> tuple[Gate, ...]:
        gates = self.get(name).gates
        if not gates:
            raise ControlError(
                f"The control {name!r} has no gate, so nothing can be done when it fires; make one with demeanor control when."
            )
        return gates


def terms_of(asked: str | Mapping[str, Any]) -> list[Term]:
    """The terms of an expression, or of a mapping from names to doses. Raises ControlError for what is neither."""
    if isinstance(asked, Mapping):
        wrong = next((name for name, dose in asked.items() if isinstance(dose, bool) or not isinstance(dose, int | float)), None)
        if wrong is not None:
            raise ControlError(f"The dose of {str(wrong)[:80]!a} is no number; 1 is the whole control, 0 none of it.")
        return [Term(name, float(dose)) for name, dose in asked.items()]
    terms: list[Term] = []
    place = 0
    while asked[place:].strip():
        match = WORDS.match(asked, place)
        if match is None or (terms and match[1] is None):
            raise ControlError(
                f"{asked[place:].strip()[:60]!a} is no part of an expression; write such as 0.5 less-refusal + 0.3 warm @when:selective."
            )
        sign, dose, name, negated, when = match.groups()
        amount = None if dose is None else float(dose)
        if sign == "-":
            amount = -1.0 if amount is None else -amount
        if amount is not None and not math.isfinite(amount):
            raise ControlError(f"The dose of {name!r} is not finite; 1 is the whole control.")
        terms.append(Term(name, amount, when, bool(negated)))
        place = match.end()
    return terms


def of_model(name: str, base: str) -> list[Term] | None:
    """The terms of a model's name `base+control+...`; None for another model."""
    if name == base:
        return []
    return [Term(part) for part in name[len(base) + 1 :].split("+")] if name.startswith(f"{base}+") else None


def reduced(control: Control, strength: float, rank: int) -> Control:
    """The first `rank` directions of a control at a strength. Raises ControlError where it has fewer."""
    most = max([len(part.vectors) for part in control.parts], default=1)
    if rank > most:
        raise ControlError(f"The control has rank {most}, not {rank}; ask for num_iterations up to {most}.")
    if any(part.kind == "transport" for part in control.parts):
        raise ControlError("A transport has no first directions, so it cannot be reduced to some; start the server with another control first.")
    parts = tuple(
        replace(
            part,
            vectors=part.vectors[:rank],
            read=None if part.read is None else part.read[:rank],
            target=None if part.target is None else part.target[:rank],
        )
        if part.kind in ("ablate", "scale", "clamp")
        else part
        for part in control.parts
    )
    return replace(control, parts=parts).scaled(strength)
