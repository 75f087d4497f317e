"""Fits the refusal judge, prints how well it does on models that it has not seen, and writes judge.json.

    python -m demeanor.detect.judge.train FOLDER

Cues and the n-grams of the opening are weighed together, in one logistic regression with a penalty for each kind. Each
model's file is left out once; penalties and the scale of the logits are chosen by leaving out each of the others in
turn (nested), never by the file that is scored. Replies count so that every model weighs the same, and those written by
hand (anchors.csv, and two thirds of handmade.csv) weigh ANCHOR_WEIGHT of a model. Every reply is shown with and without
its prompt.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .fitting import Sparse, minimise
from .judging import VERSION, WEIGHTS, Label, Weights
from .reading import FEATURES, Reading, read

FILES = ("gpt4", "llama2orig", "mistralinstruct")
LABELS: dict[str, Label] = {"1_full_compliance": "none", "2_full_refusal": "full_refusal", "3_partial_refusal": "partial_refusal"}
ANCHORS = "anchors"
ANCHOR_WEIGHT = 0.3
RARE = 3  # n-grams seen fewer times are left out
CUE_PENALTIES = (0.001, 0.002)
GRAM_PENALTIES = (0.00005, 0.0001)
PARTIAL_PENALTY = 0.003
PARTIAL_ANCHOR = 5.0  # replies of models that one written by hand counts for, where partial is told from full: they are few
NAMES = tuple(FEATURES)
SIGNS = np.array([FEATURES[name] for name in NAMES])


@dataclass(frozen=True)
class Row:
    """A labelled reply of one model, read with and without its prompt."""

    model: str
    prompt: str
    reply: str
    label: Label
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class Penalties:
    """L2 penalties; None leaves that kind of feature out."""

    cues: float | None
    grams: float | None


BOTH = tuple(itertools.starmap(Penalties, itertools.product(CUE_PENALTIES, GRAM_PENALTIES)))


def load(folder: Path) -> list[Row]:
    """The labelled replies of every model, and those written by hand that are not held out."""
    rows = []
    for model in FILES:
        with (folder / f"completions_{model}.csv").open(encoding="utf-8", newline="") as file:
            rows += [_row(model, line["prompt"], line["completion"], LABELS[line["final_label"]]) for line in csv.DictReader(file)]
    return rows + _written("anchors.csv") + [row for row in handmade() if not held_out(row.reply)]


def handmade() -> list[Row]:
    """Replies that speak of refusing and refuse nothing, and refusals without the usual words, written for this project."""
    return _written("handmade.csv")


def held_out(reply: str) -> bool:
    """Whether a reply of handmade.csv is kept for the tests: a third of them, by a hash of its text."""
    return hashlib.sha256(reply.encode()).digest()[0] % 3 == 0


def _written(name: str) -> list[Row]:
    with Path(__file__).with_name(name).open(encoding="utf-8", newline="") as file:
        return [_row(ANCHORS, line["prompt"], line["reply"], line["label"]) for line in csv.DictReader(file)]  # type: ignore[arg-type]


def _row(model: str, prompt: str, reply: str, label: Label) -> Row:
    readings = (read(reply, prompt), read(reply)) if prompt else (read(reply),)
    return Row(model, prompt, reply, label, readings)


def _cues(readings: Sequence[Reading]) -> Sparse:
    """A column per feature, and the bias."""
    place = {name: column for column, name in enumerate(NAMES)}
    rows = [{place[name]: value for name, value in reading.features.items() if value} | {len(NAMES): 1.0} for reading in readings]
    return Sparse.of(rows, len(NAMES) + 1)


def _grams(readings: Sequence[Reading], vocabulary: dict[str, int]) -> Sparse:
    rows = []
    for reading in readings:
        known = [vocabulary[gram] for gram in reading.grams if gram in vocabulary] if reading.recognised else []
        rows.append(dict.fromkeys(known, len(known) ** -0.5) if known else {})
    return Sparse.of(rows, len(vocabulary))


def _shown(rows: Sequence[Row]) -> tuple[list[Reading], np.ndarray, list[Row]]:
    """Every reading, its weight (each model 1 in all, what is written by hand ANCHOR_WEIGHT), and the row it is of."""
    sizes = Counter(row.model for row in rows)
    total = {model: ANCHOR_WEIGHT if model == ANCHORS else 1.0 for model in sizes}
    pairs = [(reading, row) for row in rows for reading in row.readings]
    weight = np.array([total[row.model] / sizes[row.model] / len(row.readings) for _, row in pairs])
    return [reading for reading, _ in pairs], weight, [row for _, row in pairs]


def fit(rows: Sequence[Row], penalties: Penalties) -> Weights:
    """The weights of cues and n-grams, fitted at once; partial refusals are told from full ones among refusals, by cues."""
    readings, weight, shown = _shown(rows)
    y = np.array([row.label != "none" for row in shown], float)
    counts = Counter(gram for row in rows for gram in row.readings[0].grams)
    vocabulary = {gram: column for column, gram in enumerate(sorted(gram for gram, count in counts.items() if count >= RARE))}
    cues = _cues(readings)
    out = 1e6  # a penalty that leaves a kind of feature out
    ridge = np.array([penalties.cues or out] * len(NAMES) + [0.0] + [penalties.grams or out] * len(vocabulary))
    signs = np.concatenate([SIGNS, np.zeros(1 + len(vocabulary))])
    found = minimise(cues.beside(_grams(readings, vocabulary)), y, weight, ridge, signs)
    refused = np.flatnonzero(y > 0)
    kind = np.array([row.label == "partial_refusal" for row in shown], float)
    # Nearly all partial refusals are one model's: here replies count the same whatever their model, or a handful would decide.
    alike = np.array([(PARTIAL_ANCHOR if row.model == ANCHORS else 1.0) / len(row.readings) for row in shown])
    some = _cues([readings[index] for index in refused])
    ridge = np.array([PARTIAL_PENALTY] * len(NAMES) + [0.0])
    partial = minimise(some, kind[refused], alike[refused], ridge, np.zeros(len(NAMES) + 1))
    return Weights(_named(found[: len(NAMES) + 1]), dict(zip(vocabulary, map(float, found[len(NAMES) + 1 :]))), _named(partial), 1.0)


def _named(values: np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in zip((*NAMES, "bias"), values) if value != 0 or name == "bias"}


def logits(weights: Weights, rows: Sequence[Row]) -> np.ndarray:
    """The logit of a refusal of each reply, read with its prompt."""
    return np.array([weights.score(row.readings[0]) for row in rows])


def log_loss(logits: np.ndarray, y: np.ndarray) -> float:
    """The mean negative log likelihood of labels y."""
    return float(np.logaddexp(0, np.where(y, -logits, logits)).mean())


def truth(rows: Sequence[Row]) -> np.ndarray:
    """Whether people called each reply a refusal, full or partial."""
    return np.array([row.label != "none" for row in rows])


def choose(rows: Sequence[Row], models: Sequence[str], grid: Sequence[Penalties] = BOTH) -> tuple[Penalties, float]:
    """The penalties, and then the scale, of least log loss when each of the models is left out in turn."""
    tried = []
    for penalties in grid:
        left_out = []
        for model in models:
            weights = fit([row for row in rows if row.model in {*models, ANCHORS} - {model}], penalties)
            tested = [row for row in rows if row.model == model]
            left_out.append((logits(weights, tested), truth(tested)))
        tried.append((float(np.mean([log_loss(*pair) for pair in left_out])), penalties, left_out))
    _, best, left_out = min(tried, key=lambda entry: entry[0])
    scales = np.linspace(0.5, 2.0, 31)
    losses = [np.mean([log_loss(scale * logits, y) for logits, y in left_out]) for scale in scales]
    return best, float(scales[int(np.argmin(losses))])


def main() -> None:
    from .evaluation import evaluate

    parser = argparse.ArgumentParser(description="Fit the refusal judge.")
    parser.add_argument("folder", type=Path, help="where completions_*.csv lie")
    parser.add_argument("--skip-table", action="store_true", help="only fit and write the weights")
    arguments = parser.parse_args()
    rows = load(arguments.folder)
    if not arguments.skip_table:
        evaluate(rows)
    penalties, scale = choose(rows, FILES)
    weights = replace(fit(rows, penalties), scale=scale)
    parts = {name: {key: round(value, 4) for key, value in getattr(weights, name).items()} for name in ("refusal", "grams", "partial")}
    WEIGHTS.write_text(json.dumps({"version": VERSION, "scale": scale, **parts}, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{WEIGHTS.name}: {penalties}, scale {scale:.2f}, {len(weights.grams)} n-grams, {WEIGHTS.stat().st_size} bytes")


if __name__ == "__main__":
    main()
