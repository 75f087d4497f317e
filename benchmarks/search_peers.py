"""Searches beside each other: `demeanor search`, Heretic 1.4 and temaq-abliterated 1.1 on one model, with the same prompts, trials and threads, in one run.

They take turns, a round after the other, each in a process of its own. The peers get the train prompts that the untouched model answers (`lacks`), and those
that show the behaviour (`shows`), to learn from, and the same of val to evaluate by; temaq-abliterated, which takes one list, gets both and uses the train
prompts. Then every tool's own front (the trials that no other beats by its own two objectives, at most --front of them, spread over it) is made anew and measured
by our judge and drift on the test split, which no tool has seen.

    python benchmarks/search_peers.py --out FOLDER --heretic PYTHON:FOLDER --abliterated PYTHON:FOLDER [--trials 60] [--rounds 3]
    python benchmarks/search_peers.py --model MODEL.gguf --behaviour real/everyday.yaml --tokens 24 --minutes 1 --tools ours heretic ...

A peer is named by a Python that can run it and a folder that is put on its module path. A tool has decided when its front is there: ours is confirmed by whole
replies, one of Heretic's is written, temaq-abliterated has verified its best. With --minutes, ours tries for so long, and a peer gets --times as long as ours
took to decide, set-up and confirmation included; Heretic is then stopped as by Ctrl+C. Of trials a second two are told: of all trials, and of
distinct settings. One setting of ours behind several gates is several trials in its study; temaq-abliterated takes what it had before from memory. Ratios
are told of wall time and, since others may use the machine, of processor time too.
Hypervolumes are of (share of `shows` that is left, drift), below 1 and 1 nat per token. The guard is the share kept of those prompts on which the
untouched model shows the behaviour. Each row is added to FOLDER/results.jsonl as it is done.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.jobs import SYSTEM, Job, abliterated, as_folder, check_system, heretic, write_prompts
from peers.processes import Ended
from rich.console import Console
from rich.table import Table

import demeanor as dm
from demeanor.measure import Bench, Ledger
from demeanor.measure.bench import Trial
from demeanor.measure.condition import Condition
from demeanor.models.loading import save_whole
from demeanor.search.front import volume
from demeanor.search.searching import COSTS
from demeanor.search.study import Limits, Study

WORST = (1.0, 1.0)  # of what is left, and of drift in nats per token
GUARD, LEFT, DRIFT = 0.95, 0.05, 0.05  # what a point must keep, may leave, and may cost
UNBOUNDED = 100_000  # trials, where time ends a search
Point = dict[str, Any]
Makes = Callable[[dm.Session], Condition]


@dataclass(frozen=True)
class Searched:
    """One search: its process; how many trials it made in how many seconds, of how many distinct settings; its front by name."""

    ended: Ended
    trials: int
    settings: int
    seconds: float | None
    front: Mapping[str, Makes] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        spent, ended = self.ended.trying, self.ended
        times = {"set_up": ended.began, "trying": self.seconds, "whole": ended.seconds, "processor": ended.processor, "processor_trying": spent}
        known = {} if not self.seconds else {"trials_s": self.trials / self.seconds, "settings_s": self.settings / self.seconds}
        known |= {} if not spent else {"trials_p": self.trials / spent, "settings_p": self.settings / spent}
        return {"ended": self.ended.how, "trials": self.trials, "settings": self.settings, **times, **{name: round(rate, 3) for name, rate in known.items()}}


def ours(job: Job, seed: int, _: float | None) -> Searched:
    run, options = job.out / "ours" / "run", job.options
    command = ["-m", "demeanor", "search", str(job.model), "-b", options.behaviour, "--reply-tokens", str(options.tokens), "--seed", str(seed), "-o", str(run)]
    command += ["--minutes", str(options.minutes)] if options.minutes else ["--trials", str(options.trials)]
    command += ["--max-prompts", str(options.max_prompts), "--confirmed", str(options.front), *shlex.split(options.more)]
    marks = {"began": " settings that selection would choose among", "settled": "Running the front, and a few other trials", "over": "Measuring the picked point"}
    ended = job.timed("ours", command, **marks)
    if not (run / "search.json").is_file():
        return Searched(ended, 0, 0, None)
    told = json.loads((run / "search.json").read_text(encoding="utf-8"))
    study = Study(f"sqlite:///{run / 'study.db'}", told["study"], COSTS, 0, Limits(0, 0))
    settings = {trial.setting for trial in study.recorded()}
    study.close()
    files = sorted((run / "front").glob("*.safetensors"))
    return Searched(ended, told["tried"], len(settings), told["trying_seconds"], {file.stem: controlled(file) for file in files})


def controlled(file: Path) -> Makes:
    return lambda session: Condition(session, dm.load_control(file))


def heretics(job: Job, seed: int, budget: float | None) -> Searched:
    made = heretic(job, most=job.options.front, seed=seed, interrupt=budget)
    trials = sum(len(finished(file)) for file in (job.out / "heretic" / "checkpoints").glob("*.jsonl"))
    return Searched(made.ended, trials, trials, between(made.ended), made.results)


def finished(journal: Path) -> list[dict[str, Any]]:
    """The lines of Optuna's journal that finish a trial."""
    text = journal.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]  # one that was ended may have left half a line
    return [line for line in lines if "trial_id" in line and line.get("state") == 1]  # COMPLETE


def abliterateds(job: Job, seed: int, budget: float | None) -> Searched:
    options, probes = job.options, (job.file("bad", "train"), job.file("good", "train"))
    options.abliterated_probes = min(len(file.read_text(encoding="utf-8").splitlines()) for file in probes)
    options.abliterated_minutes = None if budget is None else round(budget / 60, 2)
    made = abliterated(job, most=options.front, seed=seed)
    history = job.out / "abliterated" / "history.json"
    tried = json.loads(history.read_text(encoding="utf-8")) if history.is_file() else []
    settings = {json.dumps(trial["params"], sort_keys=True) for trial in tried}
    return Searched(made.ended, len(tried), len(settings), between(made.ended), made.results)


def between(ended: Ended) -> float | None:
    """Seconds from a search's beginning to its end."""
    return None if ended.began is None or ended.settled is None else ended.settled - ended.began


TOOLS: dict[str, Callable[[Job, int, float | None], Searched]] = {"ours": ours, "heretic": heretics, "abliterated": abliterateds}


def measured(bench: Bench, made: Makes) -> Point:
    """A point of a front on the bench's prompts; of the guard, what is kept of what the untouched model shows."""
    trial: Trial = bench.try_(made(bench.session))
    useful = trial.observation.useful("shows")
    kept = [now.shown for was, now in zip(bench.untouched.observation.sets["guard"], trial.observation.sets["guard"], strict=True) if was.shown]
    values = {
        "left": trial.rate("shows_rate"), "drift": trial.drift.kl.value, "guard": sum(kept) / len(kept) if kept else None, "lacks": trial.rate("lacks_rate"),
        "useless": 1 - sum(useful) / len(useful), "first_token_kl": trial.drift.first_token_kl.value,
    }  # fmt: skip
    return {name: None if value is None else max(0.0, round(value, 6)) for name, value in values.items()}


def figures(points: Sequence[Point]) -> dict[str, Any]:
    """What a front is worth: volumes, the least drift among points that keep the guard and leave little, and the least that is left at little drift."""
    kept = [point for point in points if point["guard"] is None or point["guard"] >= GUARD]
    good, near = [point for point in kept if point["left"] <= LEFT], [point for point in points if point["drift"] <= DRIFT]
    return {
        "points": len(points), "volume": _volume(points), "volume_guarded": _volume(kept), "volume_useful": _volume(points, "useless"),
        "best": min(good, key=lambda point: point["drift"], default=None), "least_left": min(near, key=lambda point: (point["left"], point["drift"]), default=None),
    }  # fmt: skip


def _volume(points: Iterable[Point], cost: str = "left") -> float:
    return round(volume([(point[cost], point["drift"]) for point in points], WORST), 5)


def model_folder(options: argparse.Namespace, out: Path) -> Path:
    """The model as a folder. The embedded model's template has no system prompt of its own, which the peers always send; an empty one is left out."""
    if options.model != "organism":
        return as_folder(Path(options.model), out)
    save_whole("organism", out)
    template = (out / "chat_template.jinja").read_text(encoding="utf-8")
    (out / "chat_template.jinja").write_text(template.replace("for m in messages", "for m in messages if m['content'] or m['role'] != 'system'"), encoding="utf-8")
    return out.resolve()


def spoken(rows: Sequence[dict[str, Any]], name: str, digits: int = 4) -> str:
    """The median over rounds, and their range."""
    values = [row[name] for row in rows if row.get(name) is not None]
    if not values:
        return "-"
    low, middle, high = (f"{value:.{digits}g}" for value in (min(values), statistics.median(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def ratios(rows: Sequence[dict[str, Any]], tool: str, name: str) -> str:
    """Ours by a tool's, of each round; against a peer, settings are its settings."""
    pairs = [(mine.get(name), other.get(name)) for mine in rows for other in rows if mine["tool"] == "ours" and other["tool"] == tool and mine["round"] == other["round"]]
    return spoken([{name: mine / other} for mine, other in pairs if mine and other], name)


def best_of(rows: Sequence[dict[str, Any]], name: str) -> str:
    """In how many rounds there is such a point, and the median of its values."""
    found = [row[name] for row in rows if row.get(name)]
    values = ", ".join(f"{cost} {statistics.median(point[cost] for point in found):.3g}" for cost in ("left", "guard", "drift") if found and found[0][cost] is not None)
    return f"{len(found)} of {len(rows)}{f': {values}' if found else ''}"


def printed(rows: Sequence[dict[str, Any]], title: str) -> None:
    """The table, in a width that does not depend on the terminal."""
    table = Table(title=title, title_justify="left")
    tools = list(dict.fromkeys(row["tool"] for row in rows))
    lines: dict[str, Callable[[str, list[dict[str, Any]]], str]] = {
        "trials, settings": lambda _, own: " / ".join(spoken(own, name) for name in ("trials", "settings")),
        "trials a second": lambda _, own: spoken(own, "trials_s"),
        "distinct settings a second": lambda _, own: spoken(own, "settings_s"),
        "ours by this, trials": lambda tool, _: ratios(rows, tool, "trials_s"),
        "ours by this, settings": lambda tool, _: ratios(rows, tool, "settings_s"),
        "the same of processor time, trials": lambda tool, _: ratios(rows, tool, "trials_p"),
        "the same of processor time, settings": lambda tool, _: ratios(rows, tool, "settings_p"),
        **{f"{what}, seconds": lambda _, own, what=name: spoken(own, what) for what, name in {"set-up": "set_up", "trials": "trying", "until it has decided": "whole", "of processors, to its end": "processor"}.items()},  # type: ignore[misc]
        "points of the front": lambda _, own: spoken(own, "points"),
        "hypervolume": lambda _, own: spoken(own, "volume", 5),
        f"hypervolume, guard >= {GUARD:.0%}": lambda _, own: spoken(own, "volume_guarded", 5),
        "hypervolume, useless replies left": lambda _, own: spoken(own, "volume_useful", 5),
        f"guard >= {GUARD:.0%}, left <= {LEFT:.0%}": lambda _, own: best_of(own, "best"),
        f"least left, drift <= {DRIFT}": lambda _, own: best_of(own, "least_left"),
    }
    for heading in ("", *tools):
        table.add_column(heading)
    for name, cell in lines.items():
        table.add_row(name, *(cell(tool, [row for row in rows if row["tool"] == tool]) for tool in tools))
    Console(width=200).print(table)


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", default="organism", help="organism, a GGUF file or a model folder")
    parser.add_argument("--behaviour", default="over-refusal")
    parser.add_argument("--out", type=Path, required=True, help="new folder for results, logs and what the tools write")
    for peer in ("heretic", "abliterated"):
        parser.add_argument(f"--{peer}", metavar="PYTHON[:FOLDER]", help="a Python that can run it, and a folder for its module path")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, help="only these; all that are named otherwise, and ours")
    parser.add_argument("--trials", type=int, default=60, help="of each tool")
    parser.add_argument("--minutes", type=float, help="of trials of ours, in place of their number")
    parser.add_argument("--times", type=float, default=5.0, help="with --minutes, the time of a peer in times that of ours")
    parser.add_argument("--rounds", type=int, default=1, help="searches of each tool, each with a seed of its own")
    parser.add_argument("--threads", type=int, default=1, help="of every tool")
    parser.add_argument("--max-prompts", type=int, default=64, help="most prompts of each set, of train and of val")
    parser.add_argument("--test-prompts", type=int, help="most prompts of each set that fronts are measured on")
    parser.add_argument("--tokens", type=int, default=48, help="longest reply, everywhere")
    parser.add_argument("--front", type=int, default=10, help="most points of a front")
    parser.add_argument("--more", default="", help="more options of `demeanor search`")
    parser.add_argument("--system", help="the system prompt that the model's template says by itself")
    parser.add_argument("--heretic-start", type=int, help="its trials at random; as many, or of --trials as large a share, as by its defaults unless given")
    parser.add_argument("--heretic-batch", type=int, default=0, help="its batch size, which it looks for itself unless given")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds after which a tool is ended")
    parser.add_argument("--keep", action="store_true", help="keep the models that the peers wrote")
    options = parser.parse_args()
    options.heretic_trials = options.abliterated_trials = UNBOUNDED if options.minutes else options.trials
    options.heretic_start = options.heretic_start or (60 if options.minutes else round(0.3 * options.trials))
    options.system = options.system if options.system is not None else "" if options.model == "organism" else SYSTEM
    if Path(options.behaviour).is_file():
        options.behaviour = str(Path(options.behaviour).resolve())
    return options


def searched(tool: str, job: Job, turn: int, budget: float | None, test: Bench) -> dict[str, Any]:
    """One search and its front, measured."""
    print(f"round {turn}, {tool} ...", flush=True)
    found = TOOLS[tool](job, turn, budget)
    row: dict[str, Any] = {"tool": tool, "round": turn, "threads": job.options.threads, "budget": budget, **found.to_json()}
    if not found.front:
        print(f"  {found.ended.how}; it made nothing that can be measured. Its last words:\n{found.ended.tail}")
        return {**row, "tail": found.ended.tail, **figures([])}
    points = [{"name": name, **measured(test, made)} for name, made in found.front.items()]
    if not job.options.keep:
        for folder in ("heretic/trials", "abliterated/front", "abliterated/edited"):
            shutil.rmtree(job.out / folder, ignore_errors=True)
    return {**row, **figures(points), "front": points}


def main() -> None:
    options = asked()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Ended from outside."))  # so that a peer at work is ended too
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(options.threads)
    options.out.mkdir(parents=True)
    out = options.out.resolve()
    tools = options.tools or ["ours", *(tool for tool in TOOLS if tool != "ours" and getattr(options, tool))]
    model = model_folder(options, out / "model")
    session = dm.load(str(model), reply_tokens=options.tokens)
    check_system(session, options.system)
    behaviour, ledger = dm.behaviour(options.behaviour).settled(session), Ledger(session)

    def bench(split: Any) -> Bench:
        return Bench(session, behaviour, split, ledger, max_prompts=options.max_prompts)

    prompts = write_prompts(bench, behaviour, out / "prompts", options.max_prompts)
    test = Bench(session, behaviour, "test", ledger, max_prompts=options.test_prompts)
    n = ", ".join(f"{name} {len(some)}" for name, some in test.prompts.items())
    title = f"{session.name.rsplit('/', 1)[-1]}; for the peers, train and val: {prompts}; test: {n}; {options.threads} thread(s) each; left untouched {test.untouched.rate('shows_rate'):.3f}"
    print(title, flush=True)
    rows: list[dict[str, Any]] = []
    for turn in range(options.rounds):
        budget: float | None = None
        for tool in tools:
            job = Job(model, out / "prompts", out / f"round-{turn}", options)
            job.out.mkdir(exist_ok=True)
            rows.append(searched(tool, job, turn, None if tool == "ours" else budget, test))
            if tool == "ours" and options.minutes:
                budget = options.times * rows[-1]["whole"]
            with (out / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
        printed(rows, title)


if __name__ == "__main__":
    main()
