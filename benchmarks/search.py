"""What quick values are worth: random settings of a search, read as rows and run with whole replies, on the same prompts in the same run.

Batches take turns: read by the surrogate (all gates, values recorded in a study), then each control run by itself with whole replies and drift, which is
what a search without quick values does in every trial. Told are the medians per trial, their ratio, and Spearman's correlations of quick values with
those of whole replies.

    python benchmarks/search.py [--model organism] [--behaviour over-refusal] [--settings 96] [--max-prompts 64] [--reply-tokens N] [--json table.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import demeanor as dm
from demeanor.finding.find import search_directions
from demeanor.measure import Bench, Ledger
from demeanor.search.confirming import Confirmed
from demeanor.search.objective import Asked, Quick
from demeanor.search.plan import SearchPlan
from demeanor.search.searching import COSTS
from demeanor.search.space import NO_GATE, Params
from demeanor.search.study import Limits, Recorded, Study
from demeanor.search.trying import AT_ONCE, FEW_AT_ONCE, Trying
from demeanor.stats.correlation import spearman


def prepared(options: argparse.Namespace) -> Trying:
    """A search that has found its directions and gates."""
    plan = SearchPlan(model=options.model, behaviour=options.behaviour, max_prompts=options.max_prompts, reply_tokens=options.reply_tokens)
    session = dm.load(options.model, loading=plan.loading)
    behaviour, ledger = dm.behaviour(options.behaviour).settled(session), Ledger(session)
    findings = search_directions(session, behaviour, max_prompts=options.max_prompts, ledger=ledger)
    return Trying(Bench(session, behaviour, "val", ledger, max_prompts=options.max_prompts), findings, plan)


def read(trying: Trying, study: Study, batch: int, settings: list[Params]) -> tuple[list[Quick], float]:
    """Quick values without a gate, and seconds per trial, recording and all gates included."""
    started = time.perf_counter()
    values = trying.objective.quick([Asked(trying.space.control(params), trying.space.gates_of(params)) for params in settings], [])
    trials = [(params, gate, quick) for params, by_gate in zip(settings, values) for gate, quick in by_gate.items()]
    for number, (params, gate, quick) in enumerate(trials):
        variant = {**params, "gate": gate} if "gate" in trying.space.common else params
        study.record(trying.space, variant, quick, (batch, number, len(trials)))
    return [by_gate[NO_GATE] for by_gate in values], (time.perf_counter() - started) / len(trials)


def run_whole(trying: Trying, bench: Bench, params: Params, quick: Quick) -> tuple[Confirmed, float]:
    """One control with whole replies, and the seconds it took."""
    started = time.perf_counter()
    control = trying.space.control(params)
    confirmed = Confirmed(Recorded(0, params, quick), control, bench.try_(control))
    _ = confirmed.costs
    return confirmed, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", default="organism")
    parser.add_argument("--behaviour", default="over-refusal")
    parser.add_argument("--settings", type=int, default=96)
    parser.add_argument("--max-prompts", type=int)
    parser.add_argument("--reply-tokens", type=int, default=48)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    trying = prepared(options)
    prompts = trying.objective.surrogate.prompts
    bench = trying.bench.on({"shows": prompts.shows, "guard": prompts.guard, prompts.ordinary_set: prompts.ordinary})
    _ = bench.untouched.drift
    at_once = AT_ONCE if bench.session.runner.small else FEW_AT_ONCE
    rows: list[tuple[Quick, Confirmed]] = []
    quick_seconds: list[float] = []
    whole_seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        study = Study(f"sqlite:///{folder}/study.db", "random", COSTS if trying.bench.behaviour.guard else COSTS[:2], 0, Limits(0, 100))
        empty = Study(f"sqlite:///{folder}/empty.db", "random", COSTS, 0, Limits(0, 100))  # of which proposals are random
        for batch in range(-(-options.settings // at_once)):
            settings = empty.propose(trying.space, batch, min(at_once, options.settings - batch * at_once))
            values, seconds = read(trying, study, batch, settings)
            quick_seconds.append(seconds)
            for params, quick in zip(settings, values, strict=True):
                confirmed, seconds = run_whole(trying, bench, params, quick)
                rows.append((quick, confirmed))
                whole_seconds.append(seconds)
            print(f"{len(rows)} settings: {told(rows, quick_seconds, whole_seconds)}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(told(rows, quick_seconds, whole_seconds), indent=2) + "\n", encoding="utf-8")


def told(rows: list[tuple[Quick, Confirmed]], quick_seconds: list[float], whole_seconds: list[float]) -> dict[str, Any]:
    """Medians per trial, their ratio, and rank correlations over all settings so far."""
    quick, whole = statistics.median(quick_seconds), statistics.median(whole_seconds)
    values = [confirmed.values for _, confirmed in rows]
    pairs = {
        "shows": [(q.shown, v["shows"]) for (q, _), v in zip(rows, values)], "left": [(q.left, v["left"]) for (q, _), v in zip(rows, values)],
        "drift": [(q.drift, v["drift"]) for (q, _), v in zip(rows, values)], "guard": [(q.guard, v["guard"]) for (q, _), v in zip(rows, values)],
    }  # fmt: skip
    known = {name: [(a, b) for a, b in some if a is not None and b is not None] for name, some in pairs.items()}
    correlations = {name: round(spearman([a for a, _ in some], [b for _, b in some]), 3) for name, some in known.items()}
    return {"n": len(rows), "read_s_per_trial": round(quick, 4), "whole_s_per_trial": round(whole, 4), "ratio": round(whole / quick, 1), "spearman": correlations}


if __name__ == "__main__":
    main()
