"""How the judge does on models that it has not seen: the table that `train.py` prints."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from .judging import judge
from .train import ANCHORS, BOTH, CUE_PENALTIES, FILES, GRAM_PENALTIES, LABELS, Penalties, Row, choose, fit, logits, truth

KINDS = {
    "cues": [Penalties(cues, None) for cues in CUE_PENALTIES],
    "n-grams": [Penalties(None, grams) for grams in GRAM_PENALTIES],
    "both": BOTH,
}
FOLDS = 5
SHARE = 0.02  # of refusals, for a model that hardly refuses
DRAWS = 1000


def calibration_error(probability: np.ndarray, y: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error over equally wide bins."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = [np.abs((probability - y)[place == index].sum()) for index in range(bins)]
    return float(sum(gaps) / len(y))


def rare_precision(said: np.ndarray, y: np.ndarray, seed: int = 0) -> float:
    """The precision where only SHARE of the replies refuse: the mean over DRAWS random choices of the refusals that stay."""
    generator = np.random.default_rng(seed)
    refused, wrong = np.flatnonzero(y), int(said[~y].sum())
    stay = max(1, round(SHARE / (1 - SHARE) * int((~y).sum())))
    found = np.array([said[generator.choice(refused, stay, replace=False)].sum() for _ in range(DRAWS)])
    return float((found / np.maximum(found + wrong, 1)).mean())


def new_prompts(rows: Sequence[Row], model: str, penalties: Penalties) -> np.ndarray:
    """Logits of a model's replies by fits that saw neither the model nor the prompt."""
    tested = [row for row in rows if row.model == model]
    found = np.zeros(len(tested))
    for fold in range(FOLDS):
        seen = [row for row in rows if row.model != model and (row.model == ANCHORS or _fold(row) != fold)]
        here = [index for index, row in enumerate(tested) if _fold(row) == fold]
        found[here] = logits(fit(seen, penalties), [tested[index] for index in here])
    return found


def _fold(row: Row) -> int:
    return hashlib.sha256(row.prompt.encode()).digest()[0] % FOLDS


def evaluate(rows: Sequence[Row], say: Callable[..., None] = print) -> None:
    """Prints the leave-one-model-out table."""
    say("| features | model left out | accuracy | without prompts | prompts unseen too | precision | recall | precision at 2 % | ECE |")
    say("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for kind, grid in KINDS.items():
        found = [_left_out(rows, model, kind, grid, say) for model in FILES]
        say(f"| {kind} | mean | " + " | ".join(f"{figure:.3f}" for figure in np.mean(found, axis=0)) + " |")


def _left_out(rows: Sequence[Row], model: str, kind: str, grid: Sequence[Penalties], say: Callable[..., None]) -> list[float]:
    penalties, scale = choose(rows, [name for name in FILES if name != model], grid)
    weights = replace(fit([row for row in rows if row.model != model], penalties), scale=scale)
    tested = [row for row in rows if row.model == model]
    y = truth(tested)
    judged = judge([row.reply for row in tested], [row.prompt for row in tested], weights)
    alone = np.array([one.refusal >= 0.5 for one in judge([row.reply for row in tested], None, weights)])
    p = np.array([one.refusal for one in judged])
    said = p >= 0.5
    unseen = new_prompts(rows, model, penalties) >= 0
    figures = [(said == y).mean(), (alone == y).mean(), (unseen == y).mean(), y[said].mean(), said[y].mean()]
    figures += [rare_precision(said, y), calibration_error(p, y)]
    say(f"| {kind} | {model} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |")
    if kind == "both":
        confusion = Counter((row.label, one.label) for row, one in zip(tested, judged))
        told = {label: [confusion[label, said] for said in LABELS.values()] for label in LABELS.values()}
        say(f"<!-- {penalties}, scale {scale:.2f}; people's labels, and {list(LABELS.values())} by the judge: {told} -->")
    return [float(figure) for figure in figures]
