"""Damaged files end in one sentence, whatever is wrong with them: 200 of each kind in `make test`, 2,500 in `make fuzz`."""

from __future__ import annotations

import csv
import io
import json
import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from damage import damaged, damaged_bytes, damaged_tensors
from demeanor.algebra.bases import orthonormal
from demeanor.algebra.moments import Moments
from demeanor.behaviours import behaviour
from demeanor.controls import (
    Candidate,
    Control,
    Direction,
    Gate,
    Part,
    Round,
    Scope,
    convert,
    load_control,
    load_direction,
    overlaps,
    read_layout,
    save_control,
    save_direction,
)
from demeanor.controls.files import load_for_files
from demeanor.controls.foreign import read_foreign
from demeanor.errors import DemeanorError
from demeanor.io.tensors import HEADER
from demeanor.job.plan import Plan
from demeanor.measure.meter import aggregate, compare, flows, read_table
from demeanor.measure.rating import read_ratings
from demeanor.models import Layout, Site
from demeanor.runtime.adapter import ADAPTER, ADAPTER_WEIGHTS, Adapter
from demeanor.runtime.adapters import read_peft
from demeanor.runtime.states import States
from demeanor.structure.layout import PostNorm, Weight, Writer
from demeanor.train import Heal

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("DEMEANOR_FUZZ", "200"))
D = 8  # d_model
RNG = torch.Generator().manual_seed(0)


def cases() -> Iterator[random.Random]:
    return (random.Random(seed) for seed in range(CASES))


def survives(read: Callable[[], Any]) -> bool:
    """Whether damage was told in one sentence; anything else that is raised fails the test."""
    try:
        read()
    except DemeanorError as error:
        sentence = str(error)
    else:
        return True
    assert "\n" not in sentence
    return False


def layout() -> Layout:
    norm = PostNorm("b.0.norm", "b.0.norm.weight", 1.0, None, False)
    writers = (
        Writer(module="embed", layer=-1, role="embed", scale=1.0, weights=(Weight("embed.weight", 1, (20, D)),)),
        Writer(module="b.0.o", layer=0, role="attn", scale=1.0, weights=(Weight("b.0.o.weight", 0, (D, D)),), post_norm=norm),
        Writer(module="b.1.down", layer=1, role="mlp", scale=0.5, weights=(Weight("b.1.down.weight", 0, (D, 16)),)),
    )
    return Layout(model_type="llama", d_model=D, blocks=("b.0", "b.1"), writers=writers, tied=("embed.weight", "head.weight"))


def rows(count: int) -> Tensor:
    return orthonormal(torch.randn(count, D, generator=RNG, dtype=torch.float64)).float()


def a_control() -> Control:
    gate = Gate(
        site=Site(1), weights=rows(2), biases=torch.tensor([0.1, -0.2]), auroc=0.9, hits=0.8, false_positives=0.1,
        against=("guard", "lacks"), roc=((0.0, 0.1), (1.0, 1.0)),
    )  # fmt: skip
    parts = (
        Part(kind="ablate", vectors=rows(2), dose=1.0, scope=Scope(layers=(1.0, 0.5)), gates=(gate, ~gate)),
        Part(kind="clamp", vectors=rows(1), dose=1.0, scope=Scope(site=Site(0), tokens="positions", positions=(-1,)), target=torch.ones(1)),
        Part(kind="ablate", vectors=torch.randn(1, D, generator=RNG), dose=0.5, scope=Scope(role="mlp"), read=rows(1)),
        Part(kind="add", vectors=torch.randn(1, D, generator=RNG), dose=-1.0, scope=Scope(site=Site(1), tokens="last_and_reply")),
    )
    return Control(parts=parts, layout=layout(), model_name="a model", made_from={"method": "find", "versions": {"torch": "2"}})


def an_adapted_control() -> Control:
    adapter = Adapter(low_rank={"b.0.q": (torch.randn(2, D), torch.randn(D, 2))}, prompts={"b.1.attn": (torch.randn(1, 3, D), torch.ones(1))})
    states = States(((1, 2, 3), (4, 5)), (torch.randn(2, 3, D), torch.randn(2, 2, D)), 0.5)
    return Control(parts=(), layout=layout(), model_name="a model", states=(states,), adapters=(adapter,))


def a_direction() -> Direction:
    def moments(*shape: int) -> Moments:
        return Moments(9, torch.randn(*shape, dtype=torch.float64), torch.rand(*shape, dtype=torch.float64))

    candidate = Candidate(site=Site(1), estimator="mean_difference", bypass=-3.0, induce=2.0, kl=0.1, auroc=1.0, separation=4.0, gap=2.0)
    return Direction(
        basis=rows(2), site=Site(1), estimator="mean_difference", shows=moments(D), lacks=moments(D), separation=4.0, auroc=1.0, split_half_cosine=0.9,
        p=0.001, candidates=(candidate,), layout=layout(), model_name="a model", behaviour="refusal", after=(3, 4),
        rounds=(Round(rank=1, site=Site(1), estimator="mean_difference"), Round(rank=2, site=None, estimator="probe", auroc=0.9)),
        layers=(moments(2, D), moments(2, D)), write=rows(2),
    )  # fmt: skip


def opened(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()[HEADER]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def damage_file(path: Path, rng: random.Random, header: dict[str, Any], tensors: dict[str, Tensor], whole: bytes) -> None:
    act = rng.randrange(8)
    if act == 0:
        path.write_bytes(damaged_bytes(whole, rng))
    elif act == 1:
        save_file(tensors, path, {HEADER: damaged_bytes(json.dumps(header).encode(), rng).decode("utf-8", "replace")})
    elif act in (2, 3):
        save_file(damaged_tensors(tensors, rng), path, {HEADER: json.dumps(header)})
    else:
        save_file(tensors, path, {HEADER: json.dumps(damaged(header, rng))})


def looked_at(control: Control) -> None:
    """What `control show` asks of a control."""
    assert str(control)
    overlaps(control)
    control.bakeable()
    control.scaled(0)
    assert control._repr_html_()


@pytest.mark.parametrize("make", [a_control, an_adapted_control])
def test_controls(tmp_path: Path, make: Callable[[], Control]) -> None:
    path = tmp_path / "c.safetensors"
    save_control(make(), path)
    looked_at(load_control(path))
    valid = (*opened(path), path.read_bytes())
    for rng in cases():
        damage_file(path, rng, *valid)
        survives(lambda: looked_at(load_control(path)))
        survives(lambda: looked_at(load_for_files(path)))
        survives(lambda: read_layout(path))


def test_directions(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    save_direction(a_direction(), path)
    assert load_direction(path)._repr_html_()
    valid = (*opened(path), path.read_bytes())
    for rng in cases():
        damage_file(path, rng, *valid)
        survives(lambda: load_direction(path)._repr_html_())


def test_layouts_in_json(tmp_path: Path) -> None:
    path = tmp_path / "organism.json"
    values = {**layout().to_json(), "hash": layout().hash}
    path.write_text(json.dumps(values))
    assert read_layout(path) == (layout(), "organism")
    for rng in cases():
        path.write_bytes(damaged_bytes(json.dumps(values).encode(), rng) if rng.random() < 0.3 else json.dumps(damaged(values, rng)).encode())
        survives(lambda: read_layout(path))


def test_plans(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    plans = (Plan(model="organism", behaviour="refusal", doses="3"), Heal(model="organism", pairs=("a.jsonl:0.5",)))
    valid = [(type(plan), yaml.safe_load(plan.written())) for plan in plans]
    for rng in cases():
        kind, values = rng.choice(valid)
        text = yaml.safe_dump(damaged(values, rng)).encode("utf-8", "replace")
        path.write_bytes(damaged_bytes(text, rng) if rng.random() < 0.4 else text)
        survives(partial(kind.from_file, path))


@pytest.mark.parametrize(
    "text",
    ["a: 2020-13-45", "a: !!timestamp x", "a: !!int ''", "a: !!bool x", "a: !!float x", "? [a]\n: b", "[" * 1500, "a: &a [*a]", "a: !!python/object:os.x {}",
     "1: 2", "- a", "", "\x00", "a: b: c", "a: 1_", "a: .inf", "2020-01-01: x"],
)  # fmt: skip
def test_odd_yaml_is_no_plan(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    assert not survives(lambda: Plan.from_file(tmp_path / "plan.yaml"))


def test_meter_rows(tmp_path: Path) -> None:
    path, base = tmp_path / "rows.jsonl", tmp_path / "base.jsonl"
    rows = [{"row": n, "prompt": f"p {n}", "reply": "=1" if n % 2 else "\u043f\u0440", "tox": n / 5, "non_latin": 0.5} for n in range(5)]
    base.write_text("\n".join(map(json.dumps, rows)))

    def meter() -> None:
        was, now = read_table(base), read_table(path)
        aggregate(now, "tox", 0.5).to_json()
        was, now = was.aligned([now])
        compare(was, now, "tox", 0.5).to_json()
        [flow.to_json() for flow in flows(was, [now], "tox", 0.3, 0.6)]

    for rng in cases():
        changed = damaged(rows, rng)
        lines = changed if isinstance(changed, list) else [changed]
        text = "\n".join(json.dumps(row) for row in lines).encode()
        path.write_bytes(damaged_bytes(text, rng) if rng.random() < 0.3 else text)
        survives(meter)


def test_adapters(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "lora_alpha": 4, "r": 2, "alpha_pattern": {"q": 8}, "use_rslora": False, "fan_in_fan_out": False, "use_dora": False,
              "base_model_name_or_path": "m"}  # fmt: skip
    tensors = {"base_model.model.q.lora_A.weight": torch.randn(2, D), "base_model.model.q.lora_B.weight": torch.randn(D, 2)}
    prompts = {"base_model.model.attn.adaption_prompt": torch.randn(1, 3, D), "base_model.model.attn.adaption_gate": torch.ones(1)}
    for rng in cases():
        kind = rng.random() < 0.7
        held = tensors if kind else prompts
        values = config if kind else {"peft_type": "ADAPTION_PROMPT"}
        text = json.dumps(damaged(values, rng) if rng.random() < 0.6 else values).encode()
        (tmp_path / ADAPTER).write_bytes(damaged_bytes(text, rng) if rng.random() < 0.2 else text)
        save_file(damaged_tensors(held, rng) if rng.random() < 0.5 else held, tmp_path / ADAPTER_WEIGHTS)
        if rng.random() < 0.2:
            (tmp_path / ADAPTER_WEIGHTS).write_bytes(damaged_bytes((tmp_path / ADAPTER_WEIGHTS).read_bytes(), rng))
        survives(lambda: str(read_peft(tmp_path)))


@pytest.mark.parametrize("pattern", ["(", "*", "[", 3, None])
def test_a_pattern_that_is_none_is_told(tmp_path: Path, pattern: Any) -> None:
    save_file({"q.lora_A.weight": torch.randn(2, D), "q.lora_B.weight": torch.randn(D, 2)}, tmp_path / ADAPTER_WEIGHTS)
    (tmp_path / ADAPTER).write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 1, "alpha_pattern": {str(pattern): "x" if pattern is None else 1}}))
    assert survives(lambda: read_peft(tmp_path)) == (pattern == 3)


def odd_tensors() -> dict[str, Any]:
    """What a .pt file may hold besides one direction."""
    return {
        "none": None, "list": [torch.ones(D)], "number": 3.0, "scalar": torch.tensor(1.0), "empty": torch.empty(0), "zero": torch.zeros(D),
        "matrix": torch.ones(2, D), "whole": torch.ones(D, dtype=torch.int64), "true": torch.ones(D, dtype=torch.bool), "nan": torch.full((D,), float("nan")),
        "complex": torch.ones(D, dtype=torch.complex64), "sparse": torch.ones(D).to_sparse(), "float8": torch.ones(D).to(torch.float8_e4m3fn),
        "quantized": torch.quantize_per_tensor(torch.ones(D), 0.1, 0, torch.qint8), "meta": torch.ones(D, device="meta"),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    }  # fmt: skip


@pytest.mark.parametrize("name", odd_tensors())
@pytest.mark.filterwarnings("ignore")
def test_odd_tensors_are_no_direction(tmp_path: Path, name: str) -> None:
    torch.save(odd_tensors()[name], tmp_path / "d.pt")
    assert not survives(lambda: read_foreign(tmp_path / "d.pt"))


@pytest.mark.parametrize("size", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_a_direction_of_any_length_is_converted(tmp_path: Path, size: float) -> None:
    torch.save(torch.ones(1, D, dtype=torch.float64, requires_grad=True) * size, tmp_path / "d.pt")
    (part,) = convert(tmp_path / "d.pt", layout(), "a model").parts
    assert torch.allclose(part.vectors, torch.full((1, D), D**-0.5))


@pytest.mark.filterwarnings("ignore")
def test_damaged_pt_files(tmp_path: Path) -> None:
    torch.save(torch.ones(D), tmp_path / "d.pt")
    whole = (tmp_path / "d.pt").read_bytes()
    for rng in cases():
        (tmp_path / "d.pt").write_bytes(damaged_bytes(whole, rng))
        survives(lambda: read_foreign(tmp_path / "d.pt"))


def test_rating_sheets_that_come_back(tmp_path: Path) -> None:
    pairs = [{"set": "shows", "base": "r12345678_1", "controlled": "r12345678_2"}]
    key = {"behaviour": "b", "control": "c", "question": "q", "better": "lower", "seed": "0", "digest": "12345678ab", "identical": 0, "pairs": pairs}
    table = io.StringIO(newline="")
    csv.writer(table).writerows([("item", "prompt", "reply", "rating"), ("r12345678_1", "p", "=a", "3"), ("r12345678_2", "p", "b", "4")])
    for rng in cases():
        (tmp_path / "key.json").write_text(json.dumps(damaged(key, rng) if rng.random() < 0.5 else key))
        text = table.getvalue().encode()
        (tmp_path / "ratings.csv").write_bytes(damaged_bytes(text, rng) if rng.random() < 0.5 else text)
        survives(lambda: str(read_ratings(tmp_path)))


def test_behaviours(tmp_path: Path) -> None:
    values = {
        "name": "mine", "description": "d", "detect": {"lexicon": {"phrases": ["sorry", "i can not"]}}, "shows": ["a b", {"user": "c d"}, {"file": "rows.jsonl"}],
        "lacks": {"file": "rows.jsonl", "column": "prompt", "where": {"kind": "> 0"}, "limit": 3}, "guard": ["e f"],
        "neutral": [{"prompt": "2 plus 2 ?", "answer": "4"}], "questions": [{"ask": "is it so ?", "want": "yes"}],
    }  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"prompt": f"x {n}", "kind": n}) for n in range(6)))
    for rng in cases():
        text = yaml.safe_dump(damaged(values, rng), allow_unicode=True).encode("utf-8", "replace")
        (tmp_path / "b.yaml").write_bytes(damaged_bytes(text, rng) if rng.random() < 0.3 else text)
        survives(lambda: str(behaviour(tmp_path / "b.yaml")))
