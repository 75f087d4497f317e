"""One job for several tools: the model's folder, the prompts in files, and how Heretic and temaq-abliterated are asked to do it.

Each runs in a process and an environment of its own, with what its user would write: a settings file and a command line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from peers.processes import Answer, Ended, HereticMenu, timed

import demeanor as dm
from demeanor.behaviours import Behaviour
from demeanor.measure import Bench
from demeanor.measure.condition import Condition
from demeanor.models.loading import save_whole

HERE = Path(__file__).parent
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # what the model's template says where nobody says anything
HERETIC_OVER, ABLITERATED_OVER = "Optimization finished!", "[Model export]"  # what they say when their search is over


@dataclass(frozen=True)
class Job:
    """What every way gets. `prompts` holds good and bad prompts, a file for train, for val, and for both.

    Of `options`: each tool's PYTHON[:FOLDER] by its name, `limit` in seconds, `tokens` of a reply, the `system` prompt, `heretic_trials`,
    `heretic_start`, `heretic_batch`, `abliterated_minutes` and `abliterated_trials`.
    """

    model: Path
    prompts: Path
    out: Path
    options: argparse.Namespace

    def timed(
        self, way: str, command: list[str], settled: str, answer: Answer | None = None, over: str | None = None, *, began: str = "",
        interrupt: float | None = None, **env: str,
    ) -> Ended:  # fmt: skip
        """A peer's process in a folder of its own; see `timed`."""
        named = getattr(self.options, way, None)
        python, _, folder = (named or sys.executable).partition(":")
        # The process is started elsewhere, so the places of its modules must not depend on where.
        path = os.pathsep.join(str(Path(each).resolve()) for each in (os.environ.get("PYTHONPATH", "") if named is None else folder).split(os.pathsep) if each)
        env = {**os.environ, **env, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
        work = self.out / way
        work.mkdir(exist_ok=True)
        log = self.out / f"{way}.log"
        return timed(
            [python, *command], work, env, log, settled=settled, over=over, answer=answer, limit=self.options.limit, began=began, interrupt=interrupt
        )

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


def heretic(job: Job, *, most: int = 4, seed: int = 0, interrupt: float | None = None) -> Made:
    """Heretic's command line with its defaults, but for the number of trials, the reply's length and prompts of ours; up to `most` trials of its
    front. It is told to stop (as by Ctrl+C) after `interrupt` seconds, and then shows the front of what it has."""
    options, folder = job.options, job.out / "heretic"
    folder.mkdir(exist_ok=True)
    sets = {"good_prompts": ("good", "train"), "bad_prompts": ("bad", "train"), "good_evaluation_prompts": ("good", "val"), "bad_evaluation_prompts": ("bad", "val")}
    settings = {
        "n_trials": options.heretic_trials, "n_startup_trials": options.heretic_start, "max_response_length": options.tokens, "seed": seed,
        "batch_size": options.heretic_batch,
        "system_prompt": options.system, "export_strategy": "merge",
    }  # fmt: skip
    written = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    written += [f"[{name}]\ndataset = {json.dumps(str(job.file(*kind)))}" for name, kind in sets.items()]
    (folder / "config.toml").write_text("\n".join(written) + "\n", encoding="utf-8")
    menu = HereticMenu(folder / "trials", most=most)
    start = [str(HERE / "start_heretic.py"), "--model", str(job.model)]
    # With COLAB_GPU it asks by lines on standard input, not by keys on a terminal.
    ended = job.timed(
        "heretic", start, settled=HERETIC_OVER, over="Model saved to", answer=menu, began="Running trial", interrupt=interrupt, COLAB_GPU="1"
    )
    bound = f"{options.heretic_trials} trials, {options.heretic_start} of them random (its defaults: 200, 60)"
    return Made(ended, bound, {name: edited(path) for name, path in menu.saved.items() if (path / "config.json").is_file()})


def abliterated(job: Job, *, most: int = 0, seed: int = 0) -> Made:
    """temaq-abliterated's command line with its defaults, but for the bounds of its search, the reply's length and prompts of ours. With `most` it is
    started so that it writes that many trials of its front too, and says when its search begins and ends."""
    options, folder = job.options, job.out / "abliterated"
    folder.mkdir(exist_ok=True)
    (folder / "settings.toml").write_text(f"system_prompt = {json.dumps(options.system)}\n", encoding="utf-8")
    start = [str(HERE / "start_abliterated.py"), "--front", str(most)] if most else ["-m", "temaq_abliterated"]
    command = [
        *start, str(job.model), "--config", "settings.toml", "--workdir", "work", "--output", "edited", "--select", "auto", "--seed", str(seed),
        "--harmful-file", str(job.file("bad", "all")), "--harmless-file", str(job.file("good", "all")), "--max-new-tokens", str(options.tokens), "--no-report",
    ]  # fmt: skip
    bounds = {"--time-budget-min": options.abliterated_minutes, "--trials": options.abliterated_trials, "--n-probe": getattr(options, "abliterated_probes", 0)}
    command += [text for name, value in bounds.items() if value for text in (name, str(value))]
    marks = {"began": "Search begins.", "settled": "Search ended.", "over": ABLITERATED_OVER} if most else {"settled": ABLITERATED_OVER}
    ended = job.timed("abliterated", command, **marks)
    minutes, trials = options.abliterated_minutes, options.abliterated_trials
    bound = ", ".join([*([f"{minutes:g} minutes of search"] if minutes else []), *([f"{trials} trials"] if trials else [])])
    found = sorted([*folder.glob("front/*/config.json"), *folder.glob("**/edited*/config.json")])
    return Made(ended, bound, {file.parent.name: edited(file.parent) for file in found})


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
