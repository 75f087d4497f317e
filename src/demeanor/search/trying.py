"""Trying: batches of settings proposed, read and recorded, until there are enough trials or the time is over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from ..behaviours import SetName
from ..calibrate.dial import dial_sites
from ..controls import Control, Gate
from ..errors import CheckFailed
from ..finding.classes import Classes
from ..finding.find import Findings
from ..finding.plan import SelectivePlan
from ..finding.selective import selective
from ..job.confirm import DOSES, PUSHED, Fires, decisions, gates_for, shortlist
from ..measure.bench import Bench
from ..models import Site
from ..progress import Bar, say
from .objective import Asked, Objective, Quick
from .plan import SearchPlan
from .space import NO_GATE, Params, Space
from .study import Recorded, Study
from .surrogates import TOLD, Read, ShortReplies, surrogate_for

AT_ONCE, FEW_AT_ONCE = 16, 4  # settings of one batch: of a small model, whose many calls are what it costs, and of others
SELECTIVE = (1.0, 2.0)  # strengths of the selective edits among the seeds


@dataclass(frozen=True)
class Item:
    """A setting that is tried behind some gates; a seed that is none of the space has a name and a control of its own."""

    params: Params
    gates: Sequence[str]
    seed: str | None = None


class Trying:
    """All that trials need: the space, the objective, what is tried first, and which gate fires on what."""

    def __init__(self, bench: Bench, findings: Findings, plan: SearchPlan) -> None:
        self.bench, self.findings, self.plan = bench, findings, plan
        gates, self.refused = ([], []) if plan.bakeable else gates_for(bench, plan.false_positives, plan.max_prompts)
        self.fires: dict[str, Fires] = {_name(gate): decisions(bench, gate, held_out) for gate, held_out in gates}
        surrogate = surrogate_for(bench, findings)
        self.objective = Objective(surrogate, {name: _as_read(bench, surrogate, fires) for name, fires in self.fires.items()})
        # Of a large model few directions were tried; a setting may name any layer.
        positions = sorted({int(direction.site.position) for direction in findings.directions})
        sites = [Site(layer, "resid_post", position) for position in positions for layer in range(bench.session.layout.n_layers)]
        classes = Classes(bench.ledger, findings.sets, sites, findings.after)
        self.space = Space(bench.session, findings, classes, {_name(gate): gate for gate, _ in gates}, findings.estimators, plan.bakeable)
        self.given = self._selective()
        self.seeds = self._seeds()

    def _selective(self) -> dict[str, Control]:
        """Selective edits of the best direction, by name: where the guard can be told apart, a run would try them."""
        behaviour, session = self.bench.behaviour, self.bench.session
        if not behaviour.guard:
            return {}
        best = next((d for d in self.findings.ranked() if d.write is None), None)
        given: dict[str, Control] = {}
        if best is None:
            return given
        for strength in SELECTIVE:
            plan = SelectivePlan(strength=strength, anyway=bool(self.fires))
            try:
                given[f"selective, strength {strength:g}"] = selective(session, behaviour, best, plan, ledger=self.bench.ledger)
            except CheckFailed as error:
                say(f"No selective edit is tried: {error}")
                break
        return given

    def _seeds(self) -> list[Item]:
        """What `find` and `run` would choose among: directions that selection found best, pushes, selective edits; each behind every gate."""
        found = [direction for direction in shortlist(self.findings, bool(self.fires)) if direction.write is None]
        settings = self.space.seeds(found, dial_sites(self.findings)[:PUSHED], DOSES)
        names = (NO_GATE, *self.fires)
        return [Item(params, names) for params in settings] + [Item({}, (NO_GATE,), seed) for seed in self.given]

    def control(self, params: Params, seed: str | None = None) -> Control:
        """The control of a setting without its gate, or of a seed."""
        return self.given[seed] if seed is not None else self.space.control(params)

    def with_gate(self, recorded: Recorded) -> Control:
        control, gate = self.control(recorded.params, recorded.seed), self.space.gate(recorded.params)
        return control if gate is None else control.when(gate)

    # -- the loop ---------------------------------------------------------------------------------

    def run(self, study: Study) -> float:
        """Batches until the plan's end; told is how many seconds they took."""
        started, most, minutes = time.monotonic(), self.plan.most, self.plan.minutes
        recorded = study.recorded()
        if recorded:
            say(f"The study holds {len(recorded)} trials; it goes on from there.")
        with closing(Bar("Trials", most or 1)) as bar:
            while most is None or len(recorded) < most:
                if minutes is not None and time.monotonic() - started > 60 * minutes:
                    break
                self._batch(study, recorded, most)
                recorded = study.recorded()
                bar.to(len(recorded) if most else 0, f"Trials: {len(recorded)}")
        return time.monotonic() - started

    def _batch(self, study: Study, recorded: Sequence[Recorded], most: int | None) -> None:
        """One batch proposed, read and recorded. One of which a part is recorded is read whole again: a batch of other rows differs in the last digits."""
        batch, there = study.batches()
        variants = [(item, gate) for item in self._items(study, batch) for gate in item.gates]
        room = len(variants) if most is None else min(len(variants), most - len(recorded) + len(there))
        earlier = [trial for trial in recorded if trial.batch != (study.salt, batch)]
        missing = [index for index in range(room) if index not in there]
        values = self._values(variants[:room] if missing else [], earlier, [old.quick for old in earlier if old.quick.whole and study.limits.hold(old.quick)])
        for index in missing:
            item, gate = variants[index]
            params = self._variant(item, gate)
            study.record(self.space, params, values[_key(params, item.seed)], (batch, index, room), item.seed)

    def _items(self, study: Study, batch: int) -> list[Item]:
        """The seeds first, then what the study proposes. A gate costs nothing, so every setting is tried behind each."""
        at_once = AT_ONCE if self.bench.session.runner.small else FEW_AT_ONCE
        seeded = -(-len(self.seeds) // at_once) if not study.salt else 0
        if batch < seeded:
            return self.seeds[batch * at_once : (batch + 1) * at_once]
        return [Item(params, (NO_GATE, *self.fires)) for params in study.propose(self.space, batch, at_once)]

    def _variant(self, item: Item, gate: str) -> Params:
        return {**item.params, "gate": gate} if item.params and "gate" in self.space.common else item.params

    def _values(self, variants: Sequence[tuple[Item, str]], earlier: Sequence[Recorded], incumbents: Sequence[Quick]) -> dict[str, Quick]:
        """Quick values by key; what was tried before is not read again."""
        values = {_key(old.params, old.seed): old.quick for old in earlier}
        asked: dict[str, tuple[Item, list[str]]] = {}
        for item, gate in variants:
            if _key(self._variant(item, gate), item.seed) not in values:
                names = asked.setdefault(_key({**item.params, "gate": ""}, item.seed), (item, []))[1]
                if gate not in names:
                    names.append(gate)
        quick = self.objective.quick([Asked(self.control(item.params, item.seed), names) for item, names in asked.values()], incumbents)
        for (item, _), by_gate in zip(asked.values(), quick, strict=True):
            values |= {_key(self._variant(item, gate), item.seed): value for gate, value in by_gate.items()}
        return values


def _key(params: Params, seed: str | None) -> str:
    return repr((sorted(params.items()), seed))


def _name(gate: Gate) -> str:
    return "+".join(gate.against)


def _as_read(bench: Bench, surrogate: ShortReplies, fires: Fires) -> Read:
    """A gate's decisions on the surrogate's prompts, as ones and zeros."""
    import torch

    def on(name: SetName) -> torch.Tensor:
        said = dict(zip(bench.prompts[name], fires[name], strict=True))
        return torch.tensor([float(said[prompt]) for prompt in surrogate.prompts.of(name)], dtype=torch.float64)

    shows, guard = (on(name) for name in TOLD)
    return Read(shows=shows, left=shows, guard=guard, drift=on(surrogate.prompts.ordinary_set))
