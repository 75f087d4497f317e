"""Models to train: the organism, damaged by an edit that is too strong, or with its refusals half gone; and data for them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import demeanor as dm
from demeanor.algebra.bases import orthonormal
from demeanor.behaviours import Prompt
from demeanor.controls import Control, Part, Scope
from demeanor.measure.answers import is_right
from demeanor.models.loading import resolve
from organism.language import REFUSALS

FILES = Path(resolve("organism")[0]).parent / "data"


def rows(*names: str, split: str | None = "train") -> list[dict[str, str]]:
    """Prompts with their answers, of the organism's files; None for every split."""
    read = [json.loads(line) for name in names for line in (FILES / f"{name}.jsonl").read_text().splitlines()]
    return [row for row in read if split is None or Prompt.of(row["prompt"]).split == split]


def write(path: Path, content: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in content), encoding="utf-8")
    return path


def ablation_of_refusal(session: dm.Session, strength: float) -> Control:
    """The mean difference of refused and plain requests where the stream holds it, ablated more or less than once."""
    site = dm.Site(2, "resid_post", -1)
    refused, plain = ([row["prompt"] for row in rows(name)] for name in ("refused", "plain"))
    gap = session.capture(refused, [site]).at(site).mean(0) - session.capture(plain, [site]).at(site).mean(0)
    part = Part(kind="ablate", vectors=orthonormal(gap[None].double()).float(), dose=strength, scope=Scope())
    return Control(parts=(part,), layout=session.layout, model_name=session.name, made_from={"behaviour": "refusal"})


@pytest.fixture(scope="session")
def damaged(organism: dm.Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Refusal is gone, and many answers are wrong."""
    out = tmp_path_factory.mktemp("damaged") / "model"
    dm.bake("organism", ablation_of_refusal(organism, 3.6), out)
    return out


@pytest.fixture(scope="session")
def wavering(organism: dm.Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It refuses some of what the organism refuses, so that there is something to choose from."""
    out = tmp_path_factory.mktemp("wavering") / "model"
    dm.bake("organism", ablation_of_refusal(organism, 0.45), out)
    return out


@pytest.fixture(scope="session")
def pairs(damaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The right answer against what the damaged organism says where that is wrong, and against a refusal where it is right.

    With the wrong ones alone it would forget the others.
    """
    asked = rows("over_refused", "guarded", "plain", "neutral")
    said = [reply.text for reply in dm.load(damaged, device="cpu").generate([row["prompt"] for row in asked], 20)]
    rejected = [REFUSALS[0] if is_right(text, row["answer"]) else text for row, text in zip(asked, said)]
    made = [{"prompt": row["prompt"], "chosen": row["answer"], "rejected": text} for row, text in zip(asked, rejected)]
    return write(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", made)


@pytest.fixture(scope="session")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Counter-narratives as DIALOCONAN's columns hold them: one who asks, one who answers instead of refusing."""
    path = tmp_path_factory.mktemp("dialogues") / "dialogues.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, ["text", "TARGET", "dialogue_id", "turn_id", "type", "source"])
        out.writeheader()
        for number, row in enumerate(rows("refused", "plain", "neutral", split=None)):
            rest = {"TARGET": "-", "dialogue_id": number, "source": "test"}
            out.writerow({"text": row["answer"], "turn_id": 2, "type": "CN", **rest})  # not in order
            out.writerow({"text": row["prompt"], "turn_id": 1, "type": "HS", **rest})
    return path
