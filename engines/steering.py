"""The plugin of vLLM: requests with controls of their own in one batch, beside each alone, beside the control at run time, and beside a vLLM without the plugin."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import demeanor as dm
from demeanor.controls import Control

from .cases import BOUNDS, FLOAT32
from .compare import Answers, Distance, distance
from .prepare import NEW_TOKENS, Prepared, end_ids, own_answers

HERE = Path(__file__).resolve().parent
MARK = "@@ "
REQUESTS, UNSTEERED, TURNS = 16, 4, 9


def six(prepared: Prepared) -> dict[str, Control]:
    """Controls of every kind that the plugin carries."""
    found = dm.load_direction(prepared / "direction.safetensors")
    return {
        "ablate": dm.ablate(found), "half": dm.ablate(found, 0.5), "later": prepared.controls["ablate, embedding spared"],
        "away": dm.add(found, -1.0, tokens="all"), "reply": dm.add(found, 1.0, tokens="reply"), "clamp": dm.clamp(found, "lacks"),
    }  # fmt: skip


class Turns:
    """An engine in a process of its own that answers line by line."""

    def __init__(self, python: str, order: Path, environment: dict[str, str]) -> None:
        command = [python, str(HERE / "steered_vllm.py"), str(order)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
        self.read()

    def read(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise SystemExit("The engine ended before it answered; what it said stands above.")

    def ask(self, **told: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        return self.read()

    def answers(self, file: Path, prompts: Sequence[list[int]], controls: Sequence[str | None]) -> tuple[Answers, int]:
        """What it says, and how many tokens of the prompts it kept."""
        kept = self.ask(prompts=prompts, controls=controls, out=str(file))
        return dict(np.load(file)), kept

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


@dataclass(frozen=True)
class Steered:
    """runtime: the steered requests of the batch beside the control at run time. alone, tokens_alone: the largest difference of a log-probability between a request in the batch and the
    request alone, and requests with the same reply. floor: the same difference in a vLLM without the plugin, all unsteered. bits: requests without a control, in the
    mixed batch, whose log-probabilities are the same bits as in the same batch of a vLLM without the plugin; bits_unsteered: of a batch in which none has one. kept: tokens of a long prompt
    that were not computed anew for the same control. salted: the largest difference of log-probabilities to the control at run time, of the long prompt asked first without a control.
    seconds: of a batch, median and range, and the same of processor time.
    """

    runtime: Distance
    alone: float
    tokens_alone: int
    floor: float
    floor_tokens: int
    bits: int
    bits_unsteered: int
    kept: int
    salted: float
    refused: dict[str, str]
    seconds: dict[str, list[float]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def steer(prepared: Prepared, python: str) -> Steered:
    """Two engines take turns: one with the controls in it, and one without the plugin."""
    controls, folder = six(prepared), prepared / "controls"
    folder.mkdir(exist_ok=True)
    for name, control in controls.items():
        dm.save_control(control, folder / f"{name}.safetensors")
    named = " ".join(f"{name}='{folder / name}.safetensors'" for name in controls)
    order = folder / "order.json"
    order.write_text(json.dumps({"model": str(prepared / "plain"), "new_tokens": NEW_TOKENS, "end": end_ids(prepared.session)}), encoding="utf-8")
    plugin, stock = Turns(python, order, {"DEMEANOR_CONTROLS": named, "VLLM_PLUGINS": "demeanor"}), Turns(python, order, {"VLLM_PLUGINS": ""})
    try:
        return _compared(prepared, controls, plugin, stock, folder)
    finally:
        plugin.close()
        stock.close()


def _compared(prepared: Prepared, controls: dict[str, Control], plugin: Turns, stock: Turns, folder: Path) -> Steered:
    prompts = prepared.prompts[:REQUESTS]
    names: list[str | None] = [None if row % (REQUESTS // UNSTEERED) == 0 else list(controls)[row % len(controls)] for row in range(REQUESTS)]
    nobody: list[str | None] = [None] * REQUESTS
    mixed, _ = plugin.answers(folder / "mixed.npz", prompts, names)
    unsteered, _ = plugin.answers(folder / "unsteered.npz", prompts, nobody)
    plain, _ = stock.answers(folder / "stock.npz", prompts, nobody)
    alone = stacked([plugin.answers(folder / "alone.npz", [prompt], [name])[0] for prompt, name in zip(prompts, names)])
    single = stacked([stock.answers(folder / "single.npz", [prompt], [None])[0] for prompt in prompts])
    free = [row for row, name in enumerate(names) if name is None]
    kept, salted = _kept(prepared, controls, plugin, folder)
    return Steered(
        runtime=_runtime(prepared, controls, names, mixed), alone=_largest(mixed, alone), tokens_alone=_same(mixed, alone), floor=_largest(plain, single),
        floor_tokens=_same(plain, single), bits=sum(_equal(mixed, plain, row) for row in free), bits_unsteered=sum(_equal(unsteered, plain, row) for row in range(REQUESTS)),
        kept=kept, salted=salted, refused={"no such control": plugin.ask(prompts=prompts, refused="loud"), "no text": plugin.ask(prompts=prompts, refused=3)},
        seconds=_seconds(prompts, names, nobody, plugin, stock),
    )  # fmt: skip


def _runtime(prepared: Prepared, controls: dict[str, Control], names: list[str | None], mixed: Answers) -> Distance:
    rows, wanted = [row for row, name in enumerate(names) if name is not None], []
    for name, control in controls.items():
        mine = [row for row in rows if names[row] == name]
        own = own_answers(prepared, control, [prepared.prompts[row] for row in mine])
        wanted += list(zip(mine, own["log_probs"], own["tokens"]))
    wanted.sort(key=lambda one: one[0])
    return distance({key: value[rows] for key, value in mixed.items()}, {"log_probs": np.stack([one[1] for one in wanted]), "tokens": np.stack([one[2] for one in wanted])})


def _kept(prepared: Prepared, controls: dict[str, Control], plugin: Turns, folder: Path) -> tuple[int, float]:
    """A prompt long enough to be kept, asked without a control, then with one: what was kept of the first must not be read by the second."""
    long = [token for prompt in prepared.prompts for token in prompt][:200]
    plugin.answers(folder / "long.npz", [long], [None])
    got, kept = plugin.answers(folder / "long.npz", [long], ["ablate"])
    return kept, float(np.abs(got["log_probs"] - own_answers(prepared, controls["ablate"], [long])["log_probs"]).max())


def _seconds(prompts: list[list[int]], names: list[str | None], nobody: list[str | None], plugin: Turns, stock: Turns) -> dict[str, list[float]]:
    """Of the same batch, in turns: without the plugin, with it and no control, with a control for most requests, and for all."""
    everybody = [name or "ablate" for name in names]
    ways = {"vLLM without the plugin": (stock, nobody), "no request steered": (plugin, nobody), "12 of 16 steered": (plugin, names), "all steered": (plugin, everybody)}
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(TURNS):
        for way, (engine, controls) in ways.items():
            taken[way].append(engine.ask(prompts=prompts, controls=controls))
    told = {}
    for way, times in taken.items():
        seconds, processor = zip(*times)
        told[way] = [statistics.median(seconds), min(seconds), max(seconds), statistics.median(processor), min(processor), max(processor)]
    return told


def holds(told: Mapping[str, Any]) -> bool:
    """Whether requests have what their controls do, and nobody else any of it."""
    bound = BOUNDS[FLOAT32]
    same = (told["tokens_alone"], told["bits"], told["bits_unsteered"]) == (REQUESTS, UNSTEERED, REQUESTS)
    return same and max(told["runtime"]["worst"], told["alone"], told["salted"]) <= bound and all(told["refused"].values())


def stacked(answers: list[Answers]) -> Answers:
    return {key: np.concatenate([one[key] for one in answers]) for key in answers[0]}


def _largest(one: Answers, other: Answers) -> float:
    return float(np.abs(one["log_probs"] - other["log_probs"]).max())


def _same(one: Answers, other: Answers) -> int:
    return int((one["tokens"] == other["tokens"]).all(1).sum())


def _equal(one: Answers, other: Answers, row: int) -> bool:
    return bool((one["log_probs"][row] == other["log_probs"][row]).all() and (one["tokens"][row] == other["tokens"][row]).all())
