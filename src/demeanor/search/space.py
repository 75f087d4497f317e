"""The space of a search: what a setting of its axes makes of a model, and which settings are tried first.

Every range is in units of the model's own: places are shares of its depth, strengths shares of the component that is removed, pushes
shares of the norm of the stream where they act. So one space fits every model. algorithms.md, section 10.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from ..algebra.bases import orthonormal
from ..algebra.estimators import clusters, gaussian_transport
from ..algebra.schedule import triangular
from ..behaviours import SetName
from ..calibrate.dial import ADDED_TO
from ..controls import Control, Direction, Gate, Part, Scope
from ..controls.control import provenance
from ..errors import DataError
from ..finding.classes import Classes
from ..finding.estimators import ESTIMATORS, estimate
from ..finding.find import Findings
from ..finding.plan import SelectivePlan
from ..finding.selective import SelectiveFits
from ..models import Session, Site
from ..progress import warn
from ..runtime.positions import REPLY
from ..structure.layout import Role

Value = str | int | float | bool
Params = Mapping[str, Value]  # of one setting, by the names of the axes
NO_GATE = "none"
KINDS = ("ablate", "push", "transport", "selective")
AT_ONE_SITE = ("push", "transport")  # which weights cannot do
RANKS = 4
FEWEST = 4  # rows of a group that a direction is made of
ROLES: tuple[Role, ...] = ("attn", "mlp", "embed")


@dataclass(frozen=True)
class Axis:
    """One thing that a setting chooses: among `choices`, or a number from low to high in steps (a whole one where the step is)."""

    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float = 1.0


# Below 0 a strength is 0, so that a part of a model is left alone by more settings than one in thirty.
STRENGTH, PLACE, SHARE = Axis(low=-0.3, high=1.5, step=0.05), Axis(low=0, high=1, step=0.05), Axis(low=0, high=1, step=0.1)
KERNEL = {"at": PLACE, "width": Axis(low=0.1, high=1, step=0.1), "edge": SHARE}
PUSH = Axis(low=0.02, high=2.0, step=0.02)
CARRIED, COMPONENTS = Axis(low=0.1, high=1.5, step=0.1), 8  # how much of a transport, and in how many components at most
TAKEN, KEEP = Axis(low=0.25, high=4, step=0.25), Axis((1.0, 3.0, 10.0, 30.0, 100.0))  # of a selective edit: its strength, and the weight of what is to stay
# Those that are tried first: both, and from what share of the best direction's layer on.
FITTED = ((1.0, 10.0, 1.0), (1.0, 30.0, 0.5), (2.0, 10.0, 1.0), (4.0, 10.0, 1.0))
EDITS = 16  # selective edits that are held: each is as large as two rows of every weight
EVERYWHERE: Params = {"rank": 1, "own": False, "telling": False, "attn": 1.0, "mlp": 1.0, "embed": 1.0, "at": 0.5, "width": 1.0, "edge": 1.0}


class Space:
    """The settings of one search: directions of its findings, where and how strongly they are edited, and behind which gate.

    `gates` by name; none where only what weights can do is wanted (`bakeable`). selective: where selective edits may be tried, what fits them.
    """

    def __init__(
        self, session: Session, findings: Findings, classes: Classes, gates: Mapping[str, Gate], names: Sequence[str], bakeable: bool,
        selective: SelectiveFits | None = None,
    ) -> None:  # fmt: skip
        self.session, self.findings, self.classes, self.gates, self.bakeable, self.selective = session, findings, classes, gates, bakeable, selective
        records = [ESTIMATORS.named(name) for name in names]
        readers = [record.name for record in records if record.traits.reads]
        if readers:
            warn(f"{' and '.join(readers)} read along one vector and write along another, which no kernel spreads over layers; left out of the search.")
        self.estimators = tuple(record.name for record in records if not record.traits.reads)
        if not self.estimators:
            raise DataError("No estimator is left that is read and written alike; name another with --estimator.")
        self._bases: dict[tuple[str, int, int], Tensor] = {}
        self._edit = lru_cache(EDITS)(self._fitted)
        self._numbers = {(site.layer, site.position): number for number, site in enumerate(classes.sites)}
        self.positions = tuple(sorted({site.position for site in classes.sites if site.position != REPLY}))

    # -- axes -------------------------------------------------------------------------------------

    @cached_property
    def common(self) -> dict[str, Axis]:
        """The axes that every setting has, in the order in which they are chosen."""
        last = max(1, self.findings.layer_limit) - 1
        kinds = tuple(kind for kind in KINDS if not (self.bakeable and kind in AT_ONE_SITE) and not (self.selective is None and kind == "selective"))
        axes = {
            "kind": Axis(kinds), "gate": Axis((NO_GATE, *self.gates)), "layer": Axis(low=0, high=last),
        }  # fmt: skip
        return {name: axis for name, axis in axes.items() if name != "gate" or len(axis.choices) > 1}

    def axes(self, kind: Value) -> dict[str, Axis]:
        """The further axes of one kind of setting."""
        if kind == "selective":
            return {"taken": TAKEN, "keep": KEEP}
        position = {"position": Axis(self.positions)} if len(self.positions) > 1 else {}
        if kind == "transport":
            return {**position, "carried": CARRIED, "components": Axis(low=1, high=COMPONENTS), "tokens": Axis(ADDED_TO)}
        along = {"estimator": Axis(self.estimators), **position}
        if kind == "push":
            return {**along, "push": PUSH, "tokens": Axis(ADDED_TO)}
        flags = {"own": Axis((False, True)), "telling": Axis((False, True))}
        return {**along, "rank": Axis(low=1, high=RANKS), **flags, "attn": STRENGTH, "mlp": STRENGTH, "embed": STRENGTH, **KERNEL}

    # -- settings as controls ---------------------------------------------------------------------

    def gate(self, params: Params) -> Gate | None:
        return self.gates.get(str(params.get("gate", NO_GATE)))

    def gates_of(self, params: Params) -> tuple[str, ...]:
        """The gates that a setting is tried behind, by name: a gate costs nothing. A selective edit has its own in every writer."""
        return (NO_GATE,) if params["kind"] == "selective" else (NO_GATE, *self.gates)

    def control(self, params: Params) -> Control:
        """The control of a setting, its gate left out."""
        if params["kind"] == "selective":
            return self._selective(params)
        made = {"push": self._push, "transport": self._transport, "ablate": self._ablations}
        parts = tuple(made[str(params["kind"])](params))
        return Control(parts=parts, layout=self.session.layout, model_name=self.session.name, made_from=self._made_from(params))

    def _made_from(self, params: Params) -> dict[str, Any]:
        return provenance(method="search", behaviour=self.findings.directions[0].behaviour, setting=dict(params))

    def _site(self, params: Params, layer: int | None = None) -> Site:
        position = params.get("position", self.positions[-1])
        return Site(int(params["layer"]) if layer is None else layer, "resid_post", int(position))

    def _push(self, params: Params) -> Iterator[Part]:
        """The stream moved from `shows` towards `lacks`, by a share of its own norm there."""
        site = self._site(params)
        r = self.basis(str(params["estimator"]), site, 1)[0]
        shows, lacks = (self._means(name, site) for name in ("shows", "lacks"))
        away = -1.0 if float((shows - lacks) @ r.double()) > 0 else 1.0
        vectors = (away * float(params["push"]) * self.norm(site) * r)[None].float()
        yield Part(kind="add", vectors=vectors, dose=1.0, scope=self._scope(params, site))

    def _transport(self, params: Params) -> Iterator[Part]:
        """The values of `shows` carried onto those of `lacks` at one site, as normal distributions in a few components."""
        site = self._site(params)
        number = self._numbers[site.layer, site.position]
        shows, lacks = (self.classes.train[name][:, number] for name in ("shows", "lacks"))
        read, vectors, target = (tensor.float() for tensor in gaussian_transport(shows, lacks, int(params["components"])))
        yield Part(kind="transport", vectors=vectors, read=read, target=target, dose=float(params["carried"]), scope=self._scope(params, site))

    def _selective(self, params: Params) -> Control:
        """A selective edit from a layer on; it is fitted when it is asked for."""
        return replace(self._edit(int(params["layer"]), float(params["taken"]), float(params["keep"])), made_from=self._made_from(params))

    def _fitted(self, layer: int, taken: float, keep: float) -> Control:
        assert self.selective is not None  # or there is no such kind
        from_layer = replace(self.findings.directions[0], site=Site(layer))  # all that is used of a direction where every layer's own gap is taken out
        return self.selective.of(from_layer, SelectivePlan(keep=keep), taken)

    def _scope(self, params: Params, site: Site) -> Scope:
        """The tokens of a setting at one site: the one that is read, or the prompt's last and the reply."""
        read = params["tokens"] == "read"
        places = (len(self.findings.after) + int(site.position),) if read else ()
        return Scope(site=Site(site.layer, site.point), tokens="read" if read else "last_and_reply", positions=places)

    def _ablations(self, params: Params) -> Iterator[Part]:
        """What every kind of writer takes out, by a kernel over the layers: one direction, or each layer's own."""
        weights = {role: self._weights(params, role) for role in ROLES}
        estimator, rank = str(params["estimator"]), int(params["rank"])
        n_layers = self.session.layout.n_layers
        for layer in range(n_layers) if params["own"] else (int(params["layer"]),):
            site = self._site(params, layer)
            basis = self.basis(estimator, site, rank)
            if not len(basis):
                continue
            told = self._telling(site, basis[0]) if params["telling"] else [True] * n_layers
            own = [1.0 if not params["own"] or layer == other else 0.0 for other in range(n_layers)]
            layers = {role: tuple(weight * mine * tells for weight, mine, tells in zip(weights[role], own, told)) for role in ROLES}
            layers["embed"] = layers["embed"] if not params["own"] or layer == 0 else (0.0,) * n_layers
            if all(weight == 1.0 for role in ROLES for weight in layers[role]):
                yield Part(kind="ablate", vectors=basis, dose=1.0, scope=Scope())
                continue
            for role in ROLES:
                if any(layers[role]):
                    yield Part(kind="ablate", vectors=basis, dose=1.0, scope=Scope(role=role, layers=layers[role]))

    def _weights(self, params: Params, role: Role) -> tuple[float, ...]:
        peak, n_layers = max(0.0, float(params[role])), self.session.layout.n_layers
        if role == "embed":
            return (peak,) * n_layers  # it has that of the first layer
        return triangular(n_layers, peak, float(params["at"]), float(params["width"]), peak * float(params["edge"]))

    def _telling(self, site: Site, r: Tensor) -> list[bool]:
        """Of every layer, whether the class means lie on both sides of 0 along r (arXiv 2601.19375)."""
        shows, lacks = (moments.mean.double() @ r.double() for moments in self.classes.layers(site.position))
        return [bool(tells) for tells in shows * lacks < 0]

    # -- directions -------------------------------------------------------------------------------

    def basis(self, estimator: str, site: Site, rank: int) -> Tensor:
        """An orthonormal basis [at most rank, d_model]: the estimator's vector, then those of groups of `shows` prompts that lie apart."""
        number = self._numbers[site.layer, site.position]
        key = estimator, number, rank
        if key not in self._bases:
            self._bases[key] = self._made(estimator, number, rank)
        return self._bases[key]

    def _made(self, estimator: str, number: int, rank: int) -> Tensor:
        values = {name: rows[:, number] for name, rows in self.classes.train.items()}
        record, shows = ESTIMATORS.named(estimator), values["shows"]
        rows = [estimate(record, values).read]
        if rank > 1 and len(shows) >= rank:
            labels = clusters(shows, rank)
            groups = [shows[labels == label] for label in labels.unique()]
            rows += [estimate(record, {**values, "shows": group}).read for group in groups if len(group) >= FEWEST and not record.traits.paired]
        kept = [row for row in rows if bool(row.any())]
        return orthonormal(torch.stack(kept), tolerance=1e-2)[:rank].float() if kept else torch.zeros(0, shows.shape[-1])

    def _means(self, name: SetName, site: Site) -> Tensor:
        return self.classes.train[name][:, self._numbers[site.layer, site.position]].mean(0)

    def norm(self, site: Site) -> float:
        """The mean norm of the stream at the site, on `shows` prompts of train."""
        return float(self.classes.train["shows"][:, self._numbers[site.layer, site.position]].norm(dim=-1).mean())

    # -- what is tried first ----------------------------------------------------------------------

    def seeds(self, found: Sequence[Direction], pushed: Sequence[Direction], doses: Sequence[float], edits: int = len(FITTED)) -> list[Params]:
        """Settings of directions that selection found best, ablated everywhere, then so many selective edits, then pushes by class gaps; without gates."""
        last = int(self.common["layer"].high)
        found = [direction for direction in found if direction.estimator in self.estimators and direction.site.layer <= last]
        seeds = [self._of(direction, {"kind": "ablate", **EVERYWHERE}) for direction in found]
        usable = (self.findings.directions[number] for number in self.findings.eligible())
        best = next((direction for direction in usable if direction.write is None and direction.site.layer <= last), None)
        if self.selective is not None and best is not None:
            seeds += [{"kind": "selective", "layer": int(share * best.site.layer), "taken": taken, "keep": keep} for taken, keep, share in FITTED[:edits]]
        if not self.bakeable:
            for direction in (direction for direction in pushed if direction.site.layer <= last):
                for dose in doses:
                    share = min(PUSH.high, max(PUSH.low, round(abs(dose * direction.gap) / self.norm(direction.site) / PUSH.step) * PUSH.step))
                    seeds += [self._of(direction, {"kind": "push", "push": round(share, 2), "tokens": tokens}) for tokens in ADDED_TO]
        return list({repr(sorted(seed.items())): seed for seed in seeds}.values())

    def _of(self, direction: Direction, rest: Params) -> Params:
        place: dict[str, Value] = {"estimator": direction.estimator, "layer": direction.site.layer}
        if len(self.positions) > 1:
            place["position"] = int(direction.site.position)
        return {**place, **rest}
