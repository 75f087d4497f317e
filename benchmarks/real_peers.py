"""Other tools on the same job, on a real model: the same prompts to learn from, the same judge, drift and guard on prompts that none has seen.

Heretic 1.4, temaq-abliterated 1.1, repeng 0.4 and `demeanor run` change one model, each in a process and an environment of its own, one after the
other. The peers get the prompts of train and val that the untouched model answers (`lacks`), and those that it deflects (`shows`), picked out for
them at no charge; none of them has a way to be told of a guard. Where a tool leaves a choice to its user (a trial of its Pareto front, a coefficient), every
choice is tried on val and the best one by our own merit is taken. Then all are measured alike on test.

    python benchmarks/real_peers.py MODEL.gguf --out FOLDER --heretic PYTHON:FOLDER --abliterated PYTHON:FOLDER --repeng PYTHON:FOLDER

A peer is named by a Python that can run it and, if need be, a folder that is put on its module path; one that is not named is left out. Seconds are
wall time: until a tool has decided (its search is over), and in all, with loading and writing; ours measures on test, bakes and compares in that time.
Each row is added to FOLDER/results.jsonl as it is done.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peers.jobs import SYSTEM, Job, Made, abliterated, as_folder, check_system, edited, heretic, write_prompts
from rich.console import Console
from rich.table import Table

import demeanor as dm
from demeanor.controls.foreign import convert
from demeanor.measure import Bench, Ledger, Measurement, measure_all
from demeanor.measure.condition import Condition
from demeanor.report.scores import interval, number

HERE = Path(__file__).parent
COLUMNS = {
    "shows_rate": "deflected", "engaged_shows": "engaging", "guard_rate": "guard refused", "lacks_rate": "ordinary refused", "drift": "drift, neutral",
    "drift_text": "drift, prose",
}  # fmt: skip
COEFFICIENTS = (0.5, 1.0, 2.0, 4.0)
VAL = 24  # prompts of each set that a choice is made by, as many as a run of ours uses


def ours(job: Job) -> Made:
    """`demeanor run` with its defaults; the model it wrote, or its control where weights cannot hold it."""
    run, options = job.out / "ours" / "run", job.options
    command = ["-m", "demeanor", "run", str(job.model), "-b", str(options.behaviour), "--reply-tokens", str(options.tokens), "-o", str(run)]
    if options.max_prompts:
        command += ["--max-prompts", str(options.max_prompts)]
    ended = job.timed("ours", command, settled="Measuring the chosen control on the test split.")
    if (run / "model").is_dir():
        return Made(ended, "none", {"baked": edited(run / "model")})
    control = run / "control.safetensors"
    return Made(ended, "none", {"at run time": lambda session: Condition(session, dm.load_control(control))} if control.is_file() else {})


def repeng(job: Job) -> Made:
    """repeng's vectors of two contrasts and two bands of layers; at run time, with a coefficient that is chosen on val."""
    folder = job.out / "repeng"
    train = [
        str(HERE / "peers" / "train_repeng.py"), str(job.model), "--good", str(job.file("good", "all")), "--bad", str(job.file("bad", "all")),
        "--system", job.options.system, "--out", "vectors",
    ]  # fmt: skip
    ended = job.timed("repeng", train, settled="personas: trained")

    def at(path: Path, coefficient: float) -> Callable[[dm.Session], Condition]:
        return lambda session: Condition(session, convert(path, session.layout, session.name, strength=coefficient))

    files = sorted((folder / "vectors").glob("*.gguf"))
    results = {f"{path.stem}, coefficient {dose:g}": at(path, dose) for path in files for dose in job.options.coefficients}
    return Made(ended, f"coefficients {', '.join(f'{dose:g}' for dose in job.options.coefficients)}", results)


WAYS: dict[str, Callable[[Job], Made]] = {"ours": ours, "heretic": heretic, "abliterated": abliterated, "repeng": repeng}


def chosen(made: Made, val: Bench) -> tuple[str, list[dict[str, Any]]]:
    """The result that is best on val by our merit, and what each was like there; the only one there is without trying it."""
    if len(made.results) == 1:
        return next(iter(made.results)), []
    tried = []
    for name, condition in made.results.items():
        trial = val.try_(condition(val.session))
        rates = {rate: trial.rate(rate) for rate in ("shows_rate", "engaged_shows", "guard_rate")}
        tried.append({"result": name, "merit": trial.merit, **rates, "drift": trial.drift.kl.value})
        print(f"  on val: {tried[-1]}", flush=True)
    return max(tried, key=lambda row: row["merit"])["result"], tried


def row_of(way: str, job: Job, benches: tuple[Bench, Bench]) -> tuple[dict[str, Any], Measurement | None]:
    """One way's line of the results, and its measurement; none where it made nothing."""
    print(f"{way} ...", flush=True)
    made = WAYS[way](job)
    said: dict[str, Any] = {"way": way, "seconds": made.ended.seconds, "decided": made.ended.settled, "bound": made.bound, "ended": made.ended.how}
    if not made.results:
        print(f"  {made.ended.how}; it made nothing that can be measured. Its last words:\n{made.ended.tail}")
        return {**said, "tail": made.ended.tail}, None
    val, test = benches
    began = time.monotonic()
    name, tried = chosen(made, val)
    said |= {"result": name, "choosing": round(time.monotonic() - began, 1) if tried else 0.0, "tried": tried}
    measured = measure_all(test, {way: made.results[name](test.session)})[way]
    return {**said, **measured.to_json()}, measured


def printed(rows: list[tuple[dict[str, Any], Measurement | None]], untouched: Measurement) -> None:
    """The table, in a width that does not depend on the terminal."""

    def cells(scores: Mapping[str, dm.Score]) -> list[str]:
        return [f"{number(name, scores[name].value)} {interval(scores[name])}" for name in n]

    table = Table(title="on test, with 95 % intervals", title_justify="left")
    n = {name: untouched.before[name].n for name in COLUMNS if name in untouched.before}
    for heading in ("", "seconds until decided", "in all", "choosing on val", *(f"{COLUMNS[name]} (n {count})" for name, count in n.items())):
        table.add_column(heading)
    table.add_row("untouched", "", "", "", *cells(untouched.before))
    for row, measured in rows:
        times = [str(row[key]) for key in ("decided", "seconds")]
        if measured is None:
            table.add_row(row["way"], *times, "", row["ended"])
        else:
            table.add_row(f"{row['way']}: {row['result']}", *times, str(row["choosing"]), *cells(measured.after))
    Console(width=260).print(table)


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("model", type=Path, help="a GGUF file, or a model folder")
    parser.add_argument("--behaviour", type=Path, default=HERE.parent / "real" / "everyday.yaml")
    parser.add_argument("--out", type=Path, required=True, help="new folder for results, logs and what the ways write")
    for peer in ("heretic", "abliterated", "repeng"):
        parser.add_argument(f"--{peer}", metavar="PYTHON[:FOLDER]", help="a Python that can run it, and a folder for its module path")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="only these; all that are named otherwise, and ours")
    parser.add_argument("--tokens", type=int, default=24, help="longest reply, everywhere")
    parser.add_argument("--system", default=SYSTEM, help="the system prompt that the model's template says by itself")
    parser.add_argument("--heretic-trials", type=int, default=40)
    parser.add_argument("--heretic-start", type=int, default=15, help="its trials at random")
    parser.add_argument("--heretic-batch", type=int, default=0, help="its batch size, which it looks for itself unless given")
    parser.add_argument("--abliterated-minutes", type=float, default=1.5, help="of its search")
    parser.add_argument("--abliterated-trials", type=int, default=0, help="its own number unless given")
    parser.add_argument("--coefficients", type=float, nargs="+", default=COEFFICIENTS, help="of repeng's vectors")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds after which a way is ended")
    parser.add_argument("--max-prompts", type=int, help="most prompts of each split of each set, for a try")
    return parser.parse_args()


def main() -> None:
    options = asked()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Ended from outside."))  # so that a peer at work is ended too
    options.behaviour = options.behaviour.resolve()
    options.out.mkdir(parents=True)
    out = options.out.resolve()
    ways = options.ways or ["ours", *(way for way in WAYS if getattr(options, way, None))]
    model = as_folder(options.model, out / "model")
    session = dm.load(str(model), reply_tokens=options.tokens)
    check_system(session, options.system)
    behaviour, ledger, most = dm.behaviour(str(options.behaviour)).settled(session), Ledger(session), options.max_prompts

    def bench(split: Any, limit: int | None = most) -> Bench:
        return Bench(session, behaviour, split, ledger, max_prompts=limit)

    print(f"{session.name}, {session.device}; prompts for the peers: {write_prompts(bench, behaviour, out / 'prompts', most)}", flush=True)
    job = Job(model, out / "prompts", out, options)
    rows: list[tuple[dict[str, Any], Measurement | None]] = []
    test = bench("test")
    untouched = measure_all(test, {"": Condition(session)})[""]
    for way in ways:
        row, measured = row_of(way, job, (bench("val", min(VAL, most or VAL)), test))
        rows.append((row, measured))
        with (out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        with (out / "replies.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"way": way, **said}) + "\n" for said in (measured.replies() if measured else ()))
        printed(rows, untouched)


if __name__ == "__main__":
    main()
