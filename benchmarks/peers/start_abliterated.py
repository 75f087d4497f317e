"""temaq-abliterated's own command line, which also writes other trials of its front, by its own export.

Its command line lets a user write any trial, but asks on a terminal for one at a time. Here, when it writes the model that it has chosen, trials of its front
are written too, into `front/TRIAL`. A trial is on the front where no other has both less refusal and less KL by its own measures; those that it
rejected early have no KL and are left out. `history.json` gets what it recorded of every trial.

It takes as many threads as there are cores; here it has as many as torch was given by OMP_NUM_THREADS. It says "Search begins." and "Search ended."
Runs in its environment, with its arguments:

    python benchmarks/peers/start_abliterated.py --front 10 MODEL ...
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from temaq_abliterated import modelio
from temaq_abliterated.cli import main as command_line
from temaq_abliterated.engine import AblationParams
from temaq_abliterated.search import ScapeSearch


def front(history: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most `most` trials of the front, spread over it."""
    known = [trial for trial in history if trial["kl"] is not None and not trial["screened"] and not trial["cached"]]
    best: list[dict[str, Any]] = []
    for trial in sorted(known, key=lambda trial: (trial["refusal_soft"], trial["kl"])):
        if not best or trial["kl"] < best[-1]["kl"]:
            best.append(trial)
    steps = min(most, len(best))
    return [best[round(step * (len(best) - 1) / max(1, steps - 1))] for step in range(steps)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--front", type=int, required=True, help="most trials of its front that are written")
    options, rest = parser.parse_known_args()
    history: list[dict[str, Any]] = []
    search, export = ScapeSearch.run, modelio.export_model

    def searched(self: ScapeSearch, resume: bool = False) -> dict[str, Any]:
        print("Search begins.", flush=True)
        result: dict[str, Any] = search(self, resume)
        print("Search ended.", flush=True)
        history[:] = result["history"]
        Path("history.json").write_text(json.dumps(history), encoding="utf-8")
        return result

    def exported(model_dir: Path, out_dir: Path, key_map: Any, params: Any, engine: Any, overwrite: bool = False) -> Path:
        for trial in front(history, options.front):
            export(model_dir, Path("front") / f"{trial['attempt']:04d}", key_map, AblationParams.from_dict(trial["params"]), engine)
        return Path(export(model_dir, out_dir, key_map, params, engine, overwrite))

    ScapeSearch.run, modelio.export_model = searched, exported
    torch.set_num_threads = lambda _: None
    sys.exit(command_line(rest))


if __name__ == "__main__":
    main()
