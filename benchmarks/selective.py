"""Selective edits on other splits: directions, strengths and the choice among them made anew, measured on test, baked, loaded by transformers.

A split is by a hash of the prompt. Every seed salts it, so that other prompts are train, val and test; all else is what a run does. The
table has every seed's rates on test with intervals; replies of the baked model are compared with those at run time, loaded by
plain transformers with nothing of this package.

    python benchmarks/selective.py [--behaviour over-refusal] [--seeds 0 1 2] [--json table.json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import demeanor as dm
from demeanor.behaviours import SET_NAMES, Behaviour, Prompt
from demeanor.finding.find import search_directions
from demeanor.job.confirm import confirm
from demeanor.measure import Bench, Ledger, Measurement
from demeanor.report.scores import interval, number

SCORES = ("shows_rate", "guard_rate", "lacks_rate", "answers_shows", "answers_neutral", "drift")


def salted(behaviour: Behaviour, seed: int) -> Behaviour:
    """The same prompts, split otherwise; seed 0 is the split that everybody has."""

    def moved(prompt: Prompt) -> Prompt:
        return replace(prompt, pair=(("seed", str(seed)), *(prompt.pair or prompt.messages)))

    return behaviour if seed == 0 else replace(behaviour, **{name: tuple(map(moved, behaviour.set(name))) for name in SET_NAMES})


def on_split(model: str, behaviour: str, seed: int) -> dict[str, Any]:
    """The best selective edit of one split, on test: its scores, and how its baked model replies."""
    session = dm.load(model)
    split = salted(dm.behaviour(behaviour).settled(session), seed)
    ledger = Ledger(session)
    findings = search_directions(session, split, ledger=ledger)
    options = confirm(Bench(session, split, "val", ledger), findings).options
    best = next(option for option in options if option.proposal.fitted is not None)
    measured = dm.measure(session, split, best.control, ledger=ledger)
    same, of = same_replies(session, model, best.control, measured)
    print(f"seed {seed}: {best.proposal}; {same} of {of} replies of the baked model are those at run time")
    for name in SCORES:
        score = measured.after[name]
        print(f"  {name:<16}{number(name, measured.before[name].value)} -> {number(name, score.value)} {interval(score)} (n {score.n})", flush=True)
    return {"seed": seed, "control": str(best.proposal), "same": same, "of": of, **measured.to_json()}


def same_replies(session: dm.Session, model: str, control: dm.Control, measured: Measurement) -> tuple[int, int]:
    """How many of the test replies plain transformers gives token for token from the baked files, and of how many."""
    outcomes = [outcome for name in SET_NAMES for outcome in measured.observed[1].sets[name]]
    with tempfile.TemporaryDirectory() as folder:
        dm.bake(model, control, Path(folder) / "baked")
        plain = AutoModelForCausalLM.from_pretrained(Path(folder) / "baked", dtype=torch.float32).eval()
        same = 0
        for outcome in outcomes:
            ids = torch.tensor([session.encode(outcome.prompt)])
            said = plain.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=max(1, len(outcome.reply.ids)), do_sample=False, pad_token_id=session.pad_id
            )
            same += tuple(said[0, ids.shape[1] :].tolist()) == tuple(outcome.reply.ids)
    return same, len(outcomes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", default="organism")
    parser.add_argument("--behaviour", default="over-refusal")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = [on_split(options.model, options.behaviour, seed) for seed in options.seeds]
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
