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
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.processes import Answer, Ended, HereticMenu, timed
from rich.console import Console
from rich.table import Table

import demeanor as dm
from demeanor.behaviours import Behaviour
from demeanor.controls.foreign import convert
from demeanor.measure import Bench, Ledger, Measurement, measure_all
from demeanor.measure.condition import Condition
from demeanor.models.loading import save_whole
from demeanor.report.scores import interval, number

HERE = Path(__file__).parent
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # what the model's template says where nobody says anything
COLUMNS = {
    "shows_rate": "deflected", "engaged_shows": "engaging", "guard_rate": "guard refused", "lacks_rate": "ordinary refused", "drift": "drift, neutral",
    "drift_text": "drift, prose",
}  # fmt: skip
COEFFICIENTS = (0.5, 1.0, 2.0, 4.0)
VAL = 24  # prompts of each set that a choice is made by, as many as a run of ours uses


@dataclass(frozen=True)
class Job:
    """What every way gets. `prompts` holds good and bad prompts, a file for train, for val, and for both."""

    model: Path
    prompts: Path
    out: Path
    options: argparse.Namespace

    def timed(self, way: str, command: list[str], settled: str, answer: Answer | None = None, over: str | None = None, **env: str) -> Ended:
        """A peer's process in a folder of its own; see `timed`."""
        named = getattr(self.options, way, None)
        python, _, folder = (named or sys.executable).partition(":")
        # The process is started elsewhere, so the places of its modules must not depend on where.
        path = os.pathsep.join(str(Path(each).resolve()) for each in (os.environ.get("PYTHONPATH", "") if named is None else folder).split(os.pathsep) if each)
        env = {**os.environ, **env, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
        work = self.out / way
        work.mkdir(exist_ok=True)
        return timed([python, *command], work, env, self.out / f"{way}.log", settled=settled, over=over, answer=answer, limit=self.options.limit)

    def file(self, kind: str, split: str) -> Path:
        return self.prompts / f"{kind}-{split}.txt"


@dataclass(frozen=True)
class Made:
    """What a way came to: how long it took, what was bounded, and the results among which its user would choose, by name."""

    ended: Ended
    bound: str
    results: Mapping[str, Callable[[dm.Session], Condition]] = field(default_factory=dict)


def edited(folder: Path) -> Callable[[dm.Session], Condition]:
    return lambda session: Condition(dm.load(str(folder), reply_tokens=session.reply_tokens))


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


def heretic(job: Job) -> Made:
    """Heretic's command line with its defaults, but for the number of trials, the reply's length and prompts of ours; up to four trials of its front."""
    options, folder = job.options, job.out / "heretic"
    folder.mkdir(exist_ok=True)
    sets = {"good_prompts": ("good", "train"), "bad_prompts": ("bad", "train"), "good_evaluation_prompts": ("good", "val"), "bad_evaluation_prompts": ("bad", "val")}
    settings = {
        "n_trials": options.heretic_trials, "n_startup_trials": options.heretic_start, "max_response_length": options.tokens, "seed": 0,
        "batch_size": options.heretic_batch,
        "system_prompt": options.system, "export_strategy": "merge",
    }  # fmt: skip
    written = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    written += [f"[{name}]\ndataset = {json.dumps(str(job.file(*kind)))}" for name, kind in sets.items()]
    (folder / "config.toml").write_text("\n".join(written) + "\n", encoding="utf-8")
    menu = HereticMenu(folder / "trials", most=4)
    start = [str(HERE / "peers" / "start_heretic.py"), "--model", str(job.model)]
    # With COLAB_GPU it asks by lines on standard input, not by keys on a terminal.
    ended = job.timed("heretic", start, settled="Optimization finished!", over="Model saved to", answer=menu, COLAB_GPU="1")
    bound = f"{options.heretic_trials} trials, {options.heretic_start} of them random (its defaults: 200, 60)"
    return Made(ended, bound, {name: edited(path) for name, path in menu.saved.items() if (path / "config.json").is_file()})


def abliterated(job: Job) -> Made:
    """temaq-abliterated's command line with its defaults, but for the time of its search, the reply's length and prompts of ours."""
    options, folder = job.options, job.out / "abliterated"
    folder.mkdir(exist_ok=True)
    (folder / "settings.toml").write_text(f"system_prompt = {json.dumps(options.system)}\n", encoding="utf-8")
    command = [
        "-m", "temaq_abliterated", str(job.model), "--config", "settings.toml", "--workdir", "work", "--output", "edited", "--select", "auto", "--seed", "0",
        "--harmful-file", str(job.file("bad", "all")), "--harmless-file", str(job.file("good", "all")), "--max-new-tokens", str(options.tokens),
        "--time-budget-min", str(options.abliterated_minutes), "--no-report",
    ]  # fmt: skip
    if options.abliterated_trials:
        command += ["--trials", str(options.abliterated_trials)]
    ended = job.timed("abliterated", command, settled="[Model export]")
    bound = f"{options.abliterated_minutes:g} minutes of search{f', {options.abliterated_trials} trials' if options.abliterated_trials else ''}"
    found = [file.parent for file in sorted(folder.glob("**/edited*/config.json"))]
    return Made(ended, bound, {path.name: edited(path) for path in found})


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


def as_folder(model: Path, out: Path) -> Path:
    """A model folder: itself, or a float32 copy of a GGUF file."""
    if model.is_dir():
        return model.resolve()
    out.mkdir()
    save_whole(str(model), out)
    return out.resolve()


def write_prompts(bench: Callable[[str], Bench], behaviour: Behaviour, folder: Path, most: int | None) -> str:
    """Good and bad prompts, one a line, of train, val and both; what there is, in words."""
    folder.mkdir(parents=True, exist_ok=True)
    every: dict[str, list[str]] = {"good": [], "bad": []}
    for split in ("train", "val"):
        on = bench(split)
        shown = on.on({"shows": on.prompts["shows"]}).untouched.observation
        sets = {
            "good": [prompt.text for prompt in behaviour.set("lacks", split, most)],
            "bad": [outcome.prompt.text for outcome in shown.sets["shows"] if outcome.shown],
        }
        for kind, texts in sets.items():
            lines = [" ".join(text.split()) for text in texts]
            every[kind] += lines
            (folder / f"{kind}-{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for kind, lines in every.items():
        (folder / f"{kind}-all.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ", ".join(f"{kind} {len(lines)}" for kind, lines in every.items())


def check_system(session: dm.Session, system: str) -> None:
    """The peers always send a system prompt, and the measurement none: ends where the two do not make the same text."""
    said = [{"role": "user", "content": "Hello."}]
    texts = [session.tokenizer.apply_chat_template(messages, tokenize=False) for messages in (said, [{"role": "system", "content": system}, *said])]
    if texts[0] != texts[1]:
        raise SystemExit(f"The model's template does not say {system!r} by itself; give what it says with --system.")


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
