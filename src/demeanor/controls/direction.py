"""Directions: where a behaviour lives, and what was compared to find it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..algebra.moments import Moments
from ..errors import ControlError, mistaken
from ..io.display import brief, object_html
from ..io.tensors import write_tensors
from ..models import Layout, Site
from ..runtime.intervene import Tokens
from ..runtime.positions import REPLY, Position
from .control import provenance
from .scope import Scope

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 8  # candidates in a notebook


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What one direction did when it was tried in selection; `estimator` is the name under which it was asked for.

    bypass: mean log-odds of the behaviour's opening on `shows` with it ablated (lower is better); induce:
    the same on `lacks` moved by the class gap of the site (dose +1 along its mean difference), not a number where it was not looked at;
    left: the mean share of the behaviour that ablation leaves on `shows`, 1 where it changes nothing; kl: mean KL(base || ablated) on
    neutral prompts, nats per token, over the first reply token or several. n: prompts of `shows` that it was tried on. auroc and
    separation (d') are of held-out prompts along it, gap is how far apart the class means lie along it. `discarded` says why, if it was.
    """

    site: Site
    estimator: str
    bypass: float
    induce: float
    kl: float
    auroc: float
    separation: float
    gap: float
    left: float = math.nan
    n: int = 0
    discarded: tuple[str, ...] = ()

    @property
    def merit(self) -> float:
        """What ablation removes less what it costs: 1 - left - kl, as controls are judged by whole replies."""
        return 1 - self.left - self.kl

    def row(self) -> dict[str, Any]:
        """As a row for `select.choose`."""
        return {
            "position": self.site.position, "layer": self.site.layer, "estimator": self.estimator, "refusal_score": self.bypass,
            "steering_score": self.induce, "kl_div_score": self.kl, "auroc": self.auroc, "separation": self.separation,
            "gap": self.gap, "merit": self.merit,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Round:
    """One more direction of a basis: where it was read (`opening` are the words forced first; no site: at every writer), and what it gained.

    auroc: of held-out prompts along it, with the earlier ones ablated; left: share of val `shows` prompts that still
    exhibit the behaviour; right: share of right answers there. None where it was not looked at.
    """

    rank: int
    site: Site | None
    estimator: str
    opening: str = ""
    auroc: float | None = None
    left: float | None = None
    right: float | None = None

    @property
    def where(self) -> str:
        opened = f" after {self.opening!r}" if self.opening else ""
        return ("every writer" if self.site is None else str(self.site)) + opened

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "site": None if self.site is None else str(self.site)}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Direction:
    """An orthonormal `basis` [k, d_model] at `site`, the class moments there and what selection saw.

    shows, lacks: class moments [d_model] of the train split. separation (d') and auroc are held out; p is that of
    the best held-out separation over all sites. `after` are the reply tokens that prompts were forced through before they were
    read; with a basis of higher rank, separation and auroc are of its first vector, and `rounds` say what the others gained.
    `layers` holds the moments of shows and of lacks at every layer's resid_post and the same position (n rows, [layer, d_model]),
    so that more prompts can be merged in and the drift of every layer told. Readers tell the classes apart along
    the basis and carry the gap along `write` [1, d_model], which is None where both are the same.
    """

    basis: Tensor
    site: Site
    estimator: str
    shows: Moments
    lacks: Moments
    separation: float
    auroc: float
    split_half_cosine: float
    p: float
    candidates: tuple[Candidate, ...]
    layout: Layout
    model_name: str
    behaviour: str
    after: tuple[int, ...] = ()
    rounds: tuple[Round, ...] = ()
    layers: tuple[Moments, Moments] | None = None
    write: Tensor | None = None

    @property
    def gap(self) -> float:
        """(m+ - m-).r along the first basis vector, in residual-stream units: what dose 1 moves."""
        return float((self.shows.mean - self.lacks.mean) @ self.basis[0].double())

    @property
    def position(self) -> Position:
        """Where it was read, counted from the prompt's end: -1 is the prompt's last token, 0 the first of the reply."""
        return REPLY if self.site.position == REPLY else len(self.after) + self.site.position

    def scope(
        self, tokens: Tokens, positions: Sequence[int] = (), *, at_site: bool = True, layers: tuple[float, ...] | None = None
    ) -> Scope:
        """Where an edit by this direction acts: at its own site, or at every writer.

        tokens "read" is the one where it was read; of one that was read over replies, the last prompt token and the reply.
        """
        if isinstance(positions, str) or not isinstance(positions, Sequence):
            raise ControlError(mistaken("A list of positions", positions, "put a single one in a list, as in [-1]"))
        site = Site(self.site.layer, self.site.point) if at_site else None
        if tokens == "read":
            position = self.position
            tokens, positions = ("last_and_reply", ()) if position == REPLY else ("read", (position,))
        return Scope(site=site, tokens=tokens, positions=tuple(positions), layers=layers)

    def component(self, name: Literal["shows", "lacks"]) -> float:
        """The class mean along the first basis vector: plain ablation moves both to 0."""
        moments = self.shows if name == "shows" else self.lacks
        return float(moments.mean @ self.basis[0].double())

    def __repr__(self) -> str:
        of = f"{brief(self.behaviour, 40)} in {brief(self.model_name, 40)}"
        return f"<Direction of {of}: {self.estimator}, rank {len(self.basis)}, {self.site}, AUROC {self.auroc:.3f}>"

    def _repr_html_(self) -> str:
        facts = {
            "estimator": self.estimator, "rank": len(self.basis), "site": self.site, "AUROC": f"{self.auroc:.3f}", "d'": f"{self.separation:.2f}",
            "split-half cosine": f"{self.split_half_cosine:.2f}", "p": f"{self.p:.4f}", "gap": f"{self.gap:.3g}",
            "prompts": f"{self.shows.n} shows, {self.lacks.n} lacks",
        }  # fmt: skip
        best = sorted(self.candidates, key=lambda candidate: candidate.bypass)[:SHOWN]
        rows = [
            (c.site, c.estimator, f"{c.bypass:.2f}", f"{c.induce:.2f}", f"{c.kl:.3f}", f"{c.auroc:.3f}", ", ".join(c.discarded))
            for c in best
        ]
        headings = ("candidate", "estimator", "bypass", "induce", "KL", "AUROC", "discarded") if rows else ()
        note = f"The {len(best)} candidates of {len(self.candidates)} whose ablation leaves least." if rows else ""
        return object_html(f"Direction of {self.behaviour} in {self.model_name}", facts, headings, rows, note)

    def made_from(self, method: str) -> dict[str, Any]:
        return provenance(method=method, behaviour=self.behaviour, estimator=self.estimator, site=str(self.site))


def as_direction(direction: Direction) -> Direction:
    """The direction that it is. Raises ControlError for anything else, such as a path or a control."""
    if not isinstance(direction, Direction):
        raise ControlError(
            mistaken("A direction", direction, "find one with find(session, behaviour), or read one from its file with load_direction(...)")
        )
    return direction


def save_direction(direction: Direction, path: str | Path) -> None:
    """Write a direction; read it back with `load_direction`."""
    direction = as_direction(direction)
    tensors = {"basis": direction.basis}
    if direction.write is not None:
        tensors["write"] = direction.write
    for number, name in enumerate(("shows", "lacks")):
        moments: Moments = getattr(direction, name)
        tensors[f"{name}.mean"], tensors[f"{name}.variance"] = moments.mean, moments.variance
        if direction.layers is not None:
            everywhere = direction.layers[number]
            tensors[f"layers.{name}.mean"], tensors[f"layers.{name}.variance"] = everywhere.mean, everywhere.variance
    header = {
        "kind": "direction", "model": direction.model_name, "layout_hash": direction.layout.hash, "layout": direction.layout.to_json(),
        "behaviour": direction.behaviour, "estimator": direction.estimator, "site": vars(direction.site), "after": list(direction.after), "n": [direction.shows.n, direction.lacks.n],
        "separation": direction.separation, "auroc": direction.auroc, "split_half_cosine": direction.split_half_cosine, "p": direction.p,
        "candidates": [{**vars(c), "site": vars(c.site)} for c in direction.candidates],
        "rounds": [{**vars(r), "site": None if r.site is None else vars(r.site)} for r in direction.rounds],
        "made_from": direction.made_from("find"),
    }  # fmt: skip
    write_tensors(Path(path), tensors, header)
