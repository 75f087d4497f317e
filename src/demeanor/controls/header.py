"""What stands in the headers of control and direction files, as they are read; checked before anything is made of it.

Schemas are built when the first file of their kind is read: that takes as long as the import of all else here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat

from ..errors import ControlError, DataError
from ..models import Layout, Site
from ..runtime.sites import POINTS
from .direction import Candidate, Round
from .gate import Kind as GateKind
from .part import Kind
from .scope import Scope

Index = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=1, lt=2**31)]


class Bound(BaseModel, defer_build=True):
    """What both kinds of file say: the model and the structure that they were made for."""

    model: str
    layout: Layout
    layout_hash: str

    def structure(self, path: Path) -> Layout:
        """The layout, which must be what its hash says."""
        refuse_other_hash(self.layout, self.layout_hash, path)
        return self.layout


class Hashed(BaseModel, defer_build=True):
    """The hash in what `inspect` writes."""

    hash: str


class PartEntry(BaseModel, defer_build=True):
    kind: Kind
    dose: FiniteFloat
    scope: Scope
    gates: tuple[Index, ...]


class GateEntry(BaseModel, defer_build=True):
    site: Site
    biases: tuple[FiniteFloat, ...]
    auroc: float
    hits: float
    false_positives: float
    kind: GateKind
    negated: bool
    against: tuple[str, ...]
    roc: tuple[tuple[float, float], ...]


class StatesEntry(BaseModel, defer_build=True):
    prompts: tuple[str, ...]
    dose: float


class AdapterEntry(BaseModel, defer_build=True):
    dose: float
    transposed: bool


class ControlHeader(Bound):
    """The header of a control file."""

    parts: tuple[PartEntry, ...]
    gates: tuple[GateEntry, ...]
    states: tuple[StatesEntry, ...]
    adapters: tuple[AdapterEntry, ...]
    made_from: dict[str, Any]


class DirectionHeader(Bound):
    """The header of a direction file."""

    behaviour: str
    estimator: str
    site: Site
    after: tuple[Index, ...]
    n: tuple[Count, Count]
    separation: float
    auroc: float
    split_half_cosine: float
    p: float
    candidates: tuple[Candidate, ...]
    rounds: tuple[Round, ...]


def refuse_other_hash(layout: Layout, stated: str, path: Path) -> None:
    """Raises ControlError where a structure is not the one that its hash names."""
    if layout.hash != stated:
        raise ControlError(f"{path} names structure {stated[:40]} but describes {layout.hash}; it was changed by hand or damaged.")


def refuse_site(site: Site, layout: Layout, path: Path) -> None:
    """Raises DataError for a site that the structure in the same file does not have."""
    if not 0 <= site.layer < layout.n_layers or site.point not in POINTS:
        raise DataError(f"{path}: there is no {site.point} in layer {site.layer} of the structure that it names; write it again.")
