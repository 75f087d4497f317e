"""Fits the refusal judge, prints how well it does on models that it has not seen, and writes judge.json.

    python -m demeanor.detect.judge.train FOLDER

Each model's file is left out once; regularisation and the scale of the logits are chosen by leaving out each of the
others in turn (nested), never by the file that is scored. Replies count so that every model weighs the same, and the
replies written by hand (anchors.csv) weigh ANCHOR_WEIGHT of a model. Every reply is shown with and without its prompt.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .judging import VERSION, WEIGHTS, Label, Weights, judge
from .reading import FEATURES, Reading, read

FILES = ("gpt4", "llama2orig", "mistralinstruct")
LABELS: dict[str, Label] = {"1_full_compliance": "none", "2_full_refusal": "full_refusal", "3_partial_refusal": "partial_refusal"}
ANCHORS = "anchors"
ANCHOR_WEIGHT = 0.3
RARE = 4  # n-grams seen fewer times are left out
CUE_PENALTIES = (0.001, 0.003, 0.01)
GRAM_PENALTIES = (0.0003, 0.001, 0.003)
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
    cues: float
    grams: float


def load(folder: Path) -> list[Row]:
    rows = []
    for model in FILES:
        with (folder / f"completions_{model}.csv").open(encoding="utf-8", newline="") as file:
            rows += [_row(model, line["prompt"], line["completion"], LABELS[line["final_label"]]) for line in csv.DictReader(file)]
    with Path(__file__).with_name("anchors.csv").open(encoding="utf-8", newline="") as file:
        rows += [_row(ANCHORS, line["prompt"], line["reply"], line["label"]) for line in csv.DictReader(file)]  # type: ignore[arg-type]
    return rows


def _row(model: str, prompt: str, reply: str, label: Label) -> Row:
    readings = (read(reply, prompt), read(reply)) if prompt else (read(reply),)
    return Row(model, prompt, reply, label, readings)


def minimise(x: np.ndarray, y: np.ndarray, weight: np.ndarray, penalty: float, signs: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """L2-regularised logistic regression with weights of given signs; the last column is the bias, which is not penalised.

    Accelerated projected gradient (Beck and Teboulle 2009, FISTA with constant step), float64.
    """
    weight = weight / weight.sum()
    ridge = np.full(x.shape[1], penalty)
    ridge[-1] = 0.0
    low, high = np.where(signs > 0, 0.0, -np.inf), np.where(signs < 0, 0.0, np.inf)
    gram = (x * weight[:, None]).T @ x if x.shape[1] < x.shape[0] else (x * weight[:, None]) @ x.T
    step = 1 / (0.25 * np.abs(np.linalg.eigvals(gram)).max() + penalty)
    now = ahead = np.zeros(x.shape[1])
    pace = 1.0
    for _ in range(4000):
        slope = x.T @ (weight * (1 / (1 + np.exp(-(x @ ahead + offset))) - y)) + ridge * ahead
        after: np.ndarray = np.clip(ahead - step * slope, low, high)
        if np.abs(after - now).max() < 1e-6:
            return after
        faster = (1 + np.sqrt(1 + 4 * pace * pace)) / 2
        ahead = after + (pace - 1) / faster * (after - now)
        now, pace = after, faster
    return now


def _matrix(readings: Sequence[Reading]) -> np.ndarray:
    return np.array([[*(reading.features.get(name, 0.0) for name in NAMES), 1.0] for reading in readings])


def _gram_matrix(readings: Sequence[Reading], vocabulary: dict[str, int]) -> np.ndarray:
    x = np.zeros((len(readings), len(vocabulary) + 1))  # the last column stands for a bias, which the cues have already
    for row, reading in zip(x, readings):
        known = [vocabulary[gram] for gram in reading.grams if gram in vocabulary]
        if known and reading.recognised:
            row[known] = len(known) ** -0.5
    return x


def _shown(rows: Sequence[Row]) -> tuple[list[Reading], np.ndarray, list[Row]]:
    """Every reading, its weight (each model 1 in all, the anchors ANCHOR_WEIGHT), and the row it is of."""
    sizes = Counter(row.model for row in rows)
    total = {model: ANCHOR_WEIGHT if model == ANCHORS else 1.0 for model in sizes}
    pairs = [(reading, row) for row in rows for reading in row.readings]
    weight = np.array([total[row.model] / sizes[row.model] / len(row.readings) for _, row in pairs])
    return [reading for reading, _ in pairs], weight, [row for _, row in pairs]


def fit(rows: Sequence[Row], penalties: Penalties) -> Weights:
    """Cues first; the words of the opening then explain what cues leave open. Partial refusals are told among refusals."""
    readings, weight, shown = _shown(rows)
    y = np.array([row.label != "none" for row in shown], float)
    x = _matrix(readings)
    cues = minimise(x, y, weight, penalties.cues, np.append(SIGNS, 0), np.zeros(len(y)))
    counts = Counter(gram for row in rows for gram in row.readings[0].grams)
    vocabulary = {gram: column for column, gram in enumerate(sorted(gram for gram, count in counts.items() if count >= RARE))}
    words = _gram_matrix(readings, vocabulary)
    grams = minimise(words, y, weight, penalties.grams, np.zeros(words.shape[1]), x @ cues)
    refused = y > 0
    kind = np.array([row.label == "partial_refusal" for row in shown], float)
    # Nearly all partial refusals are one model's: here replies count the same whatever their model, or a handful would decide.
    alike = np.array([(PARTIAL_ANCHOR if row.model == ANCHORS else 1.0) / len(row.readings) for row in shown])
    partial = minimise(x[refused], kind[refused], alike[refused], PARTIAL_PENALTY, np.zeros(x.shape[1]), np.zeros(int(refused.sum())))
    return Weights(_named(cues), dict(zip(vocabulary, map(float, grams))), _named(partial), 1.0)


def _named(values: np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in zip((*NAMES, "bias"), values) if value != 0 or name == "bias"}


def _logits(weights: Weights, rows: Sequence[Row]) -> np.ndarray:
    return np.array([weights.score(row.readings[0]) for row in rows])


def _loss(logits: np.ndarray, y: np.ndarray) -> float:
    return float(np.logaddexp(0, np.where(y, -logits, logits)).mean())


def _truth(rows: Sequence[Row]) -> np.ndarray:
    return np.array([row.label != "none" for row in rows])


def choose(rows: Sequence[Row], models: Sequence[str]) -> tuple[Penalties, float]:
    """The penalties, and then the scale, of least log loss when each of the models is left out in turn."""
    tried = []
    for penalties in itertools.starmap(Penalties, itertools.product(CUE_PENALTIES, GRAM_PENALTIES)):
        left_out = []
        for model in models:
            weights = fit([row for row in rows if row.model in {*models, ANCHORS} - {model}], penalties)
            tested = [row for row in rows if row.model == model]
            left_out.append((_logits(weights, tested), _truth(tested)))
        tried.append((float(np.mean([_loss(*pair) for pair in left_out])), penalties, left_out))
    _, best, left_out = min(tried, key=lambda entry: entry[0])
    scales = np.linspace(0.5, 2.0, 31)
    losses = [np.mean([_loss(scale * logits, y) for logits, y in left_out]) for scale in scales]
    return best, float(scales[int(np.argmin(losses))])


def calibration_error(probability: np.ndarray, y: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error over equally wide bins."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = [np.abs((probability - y)[place == index].sum()) for index in range(bins)]
    return float(sum(gaps) / len(y))


def evaluate(rows: Sequence[Row]) -> None:
    """Prints the leave-one-model-out table."""
    print("model, penalties, scale, accuracy, without prompts, precision, recall, Brier, ECE, log loss")
    accuracies = []
    for model in FILES:
        others = [name for name in FILES if name != model]
        penalties, scale = choose(rows, others)
        weights = replace(fit([row for row in rows if row.model != model], penalties), scale=scale)
        tested, y = [row for row in rows if row.model == model], _truth([row for row in rows if row.model == model])
        judged = judge([row.reply for row in tested], [row.prompt for row in tested], weights)
        alone = judge([row.reply for row in tested], None, weights)
        p = np.array([one.refusal for one in judged])
        said = p >= 0.5
        accuracies.append((said == y).mean())
        figures = [accuracies[-1], np.mean(np.array([one.refusal >= 0.5 for one in alone]) == y), y[said].mean(), said[y].mean()]
        figures += [((p - y) ** 2).mean(), calibration_error(p, y), _loss(np.log(p / (1 - p)), y)]
        print(model, penalties.cues, penalties.grams, f"{scale:.2f}", *(f"{figure:.4f}" for figure in figures))
        confusion = Counter((row.label, one.label) for row, one in zip(tested, judged))
        for label in LABELS.values():
            print(f"    {label:16}", {said: confusion[label, said] for said in LABELS.values()})
    print(f"mean accuracy {np.mean(accuracies):.4f}")


def main() -> None:
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
