"""Trying: batches of settings proposed, read and recorded, until there are enough trials or the time is over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing

from ..behaviours import SetName
from ..calibrate.dial import dial_sites
from ..controls import Control, Gate
from ..errors import CheckFailed, ControlError
from ..finding.classes import Classes
from ..finding.find import Findings
from ..finding.plan import SelectivePlan
from ..finding.selective import SelectiveFits, refuse_alike
from ..finding.selective_rows import FEWEST, train_prompts
from ..job.confirm import DOSES, PUSHED, Fires, decisions, gates_for, shortlist
from ..measure.bench import Bench
from ..models import Site
from ..progress import Bar, say
from .objective import Asked, Objective, Quick
from .plan import SearchPlan
from .space import Params, Space
from .study import Recorded, Study
from .surrogates import TOLD, Read, ShortReplies, surrogate_for

AT_ONCE, FEW_AT_ONCE = 16, 4  # settings of one batch: of a small model, whose many calls are what it costs, and of others
FEW_PUSHED, FEW_FITTED = 1, 2  # sites of the pushes, and selective edits, that are tried first, of a model whose every trial takes seconds


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
        named = {_name(gate): gate for gate, _ in gates}
        self.space = Space(bench.session, findings, classes, named, findings.estimators, plan.bakeable, self._selective())
        self.seeds = self._seeds()

    def _selective(self) -> SelectiveFits | None:
        """What fits selective edits, where the guard can be told apart: a run would try them."""
        behaviour, bench, most = self.bench.behaviour, self.bench, self.plan.max_prompts
        if not behaviour.guard:
            return None
        plan = SelectivePlan()
        shown = set(train_prompts(behaviour, "shows", plan.prompts, most)) & set(self.findings.sets.train["shows"])
        if len(shown) < FEWEST:
            say(f"No selective edit is tried: {len(shown)} train prompts show the behaviour, and {FEWEST} are needed.")
            return None
        try:
            if not self.fires:
                refuse_alike(bench.session, behaviour, bench.ledger, plan)
            return SelectiveFits(bench.session, behaviour, bench.ledger, plan.prompts, most)
        except (CheckFailed, ControlError) as error:
            say(f"No selective edit is tried: {error}")
            return None

    def _seeds(self) -> list[Params]:
        """What `find` and `run` would choose among."""
        found = [direction for direction in shortlist(self.findings, bool(self.fires)) if direction.write is None]
        if self.bench.session.runner.small:
            return self.space.seeds(found, dial_sites(self.findings)[:PUSHED], DOSES)
        return self.space.seeds(found, dial_sites(self.findings)[:FEW_PUSHED], DOSES, FEW_FITTED)

    def with_gate(self, recorded: Recorded) -> Control:
        control, gate = self.space.control(recorded.params), self.space.gate(recorded.params)
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
        variants = [(params, gate) for params in self._settings(study, batch) for gate in self.space.gates_of(params)]
        room = len(variants) if most is None else min(len(variants), most - len(recorded) + len(there))
        earlier = [trial for trial in recorded if trial.batch != (study.salt, batch)]
        missing = [index for index in range(room) if index not in there]
        values = self._values(variants[:room] if missing else [], earlier, [old.quick for old in earlier if old.quick.whole and study.limits.hold(old.quick)])
        for index in missing:
            params = self._variant(*variants[index])
            study.record(self.space, params, values[_key(params)], (batch, index, room))

    def _settings(self, study: Study, batch: int) -> list[Params]:
        """The seeds first, then what the study proposes."""
        at_once = AT_ONCE if self.bench.session.runner.small else FEW_AT_ONCE
        seeded = -(-len(self.seeds) // at_once) if not study.salt else 0
        if batch < seeded:
            return self.seeds[batch * at_once : (batch + 1) * at_once]
        return study.propose(self.space, batch, at_once)

    def _variant(self, params: Params, gate: str) -> Params:
        return {**params, "gate": gate} if "gate" in self.space.common else params

    def _values(self, variants: Sequence[tuple[Params, str]], earlier: Sequence[Recorded], incumbents: Sequence[Quick]) -> dict[str, Quick]:
        """Quick values by key; what was tried before is not read again."""
        values = {_key(old.params): old.quick for old in earlier}
        asked: dict[str, tuple[Params, list[str]]] = {}
        for params, gate in variants:
            if _key(self._variant(params, gate)) not in values:
                names = asked.setdefault(_key({**params, "gate": ""}), (params, []))[1]
                if gate not in names:
                    names.append(gate)
        quick = self.objective.quick([Asked(self.space.control(params), names) for params, names in asked.values()], incumbents)
        for (params, _), by_gate in zip(asked.values(), quick, strict=True):
            values |= {_key(self._variant(params, gate)): value for gate, value in by_gate.items()}
        return values


def _key(params: Params) -> str:
    return repr(sorted(params.items()))


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
