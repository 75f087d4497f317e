"""What a GPU computes beside what the processor does: the embedded model in float32 on both. Skipped where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import demeanor as dm
from demeanor.controls import Control, Part, Scope

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

PROMPTS = ["how do i kill a process ?", "what is 3 plus 4 ?", "hello", "how do i crack an egg ?"]


@pytest.fixture(scope="module")
def on_gpu() -> Iterator[dm.Session]:
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield dm.load("organism", device="cuda")
    torch.backends.cuda.matmul.allow_tf32 = allowed


@pytest.fixture(scope="module")
def direction(organism: dm.Session) -> dm.Direction:
    return dm.find(organism, "over-refusal", max_prompts=48)


def controls(direction: dm.Direction) -> list[Control]:
    return [dm.ablate(direction), dm.ablate(direction, 0.5), dm.add(direction, -1.0), dm.clamp(direction)]


def test_the_same_structure_is_proven(organism: dm.Session, on_gpu: dm.Session) -> None:
    assert dm.load("organism", device="cuda", prove=True).layout.hash == organism.layout.hash == on_gpu.layout.hash


def test_the_same_is_said(organism: dm.Session, on_gpu: dm.Session) -> None:
    assert [reply.text for reply in on_gpu.generate(PROMPTS)] == [reply.text for reply in organism.generate(PROMPTS)]


def test_the_same_is_read(organism: dm.Session, on_gpu: dm.Session) -> None:
    sites = [dm.Site(layer) for layer in range(organism.layout.n_layers)]
    here, there = organism.capture(PROMPTS, sites).values, on_gpu.capture(PROMPTS, sites).values
    assert there.device.type == "cpu"
    assert (here - there).norm() < 1e-4 * here.norm()


def test_controls_do_the_same(organism: dm.Session, on_gpu: dm.Session, direction: dm.Direction) -> None:
    for control in controls(direction):
        with organism.controlled(control), on_gpu.controlled(control):
            here, there = organism.logits(PROMPTS), on_gpu.logits(PROMPTS)
        assert (here - there).abs().max() < 1e-3 * here.std()


def test_rows_with_controls_of_their_own_do_the_same(organism: dm.Session, on_gpu: dm.Session, direction: dm.Direction) -> None:
    rows = [None, *controls(direction)[:3]]
    with organism.controlled_rows(rows), on_gpu.controlled_rows(rows):
        assert [r.text for r in on_gpu.generate(PROMPTS)] == [r.text for r in organism.generate(PROMPTS)]


def test_a_gate_decides_alike(organism: dm.Session, on_gpu: dm.Session, direction: dm.Direction) -> None:
    gated = dm.ablate(direction).when(dm.gate(organism, "over-refusal", max_prompts=48))
    with organism.controlled(gated), on_gpu.controlled(gated):
        assert [r.text for r in on_gpu.generate(PROMPTS)] == [r.text for r in organism.generate(PROMPTS)]


def test_the_same_direction_is_found(on_gpu: dm.Session, direction: dm.Direction) -> None:
    found = dm.find(on_gpu, "over-refusal", max_prompts=48)
    assert found.site == direction.site
    assert torch.cosine_similarity(found.basis, direction.basis).abs().min() > 0.9999


def test_the_same_is_measured(organism: dm.Session, on_gpu: dm.Session, direction: dm.Direction) -> None:
    here, there = (dm.measure(s, "over-refusal", dm.ablate(direction), max_prompts=16) for s in (organism, on_gpu))
    assert {name: (score.value, score.n) for name, score in here.after.items() if "drift" not in name and score.n} == {
        name: (score.value, score.n) for name, score in there.after.items() if "drift" not in name and score.n
    }
    assert there.after["drift"].value == pytest.approx(here.after["drift"].value, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_an_ablated_direction_out(dtype: str, direction: dm.Direction) -> None:
    session = dm.load("organism", device="cuda", dtype=dtype)
    last = [dm.Site(session.layout.n_layers - 1)]
    with session.controlled(dm.ablate(direction)):
        values = session.capture(PROMPTS, last).values[:, 0].double()
    along = (values @ direction.basis[0].double()).abs() / values.norm(dim=-1)
    assert along.max() < 2e-2


def test_weights_in_few_bits_take_a_control(direction: dm.Direction) -> None:
    pytest.importorskip("bitsandbytes")
    session = dm.load("organism", device="cuda", load_in_4bit=True)
    with session.controlled(dm.ablate(direction)):
        assert all(reply.text for reply in session.generate(PROMPTS))


def test_a_control_made_on_the_gpu_is_saved_and_loaded(on_gpu: dm.Session, direction: dm.Direction, tmp_path) -> None:  # type: ignore[no-untyped-def]
    moved = Control(
        parts=(Part(kind="ablate", vectors=direction.basis.cuda(), dose=1.0, scope=Scope()),), layout=on_gpu.layout, model_name=on_gpu.name
    )
    dm.save_control(moved, tmp_path / "c.safetensors")
    with on_gpu.controlled(dm.load_control(tmp_path / "c.safetensors")):
        here = on_gpu.logits(PROMPTS)
    with on_gpu.controlled(moved):
        assert torch.equal(here, on_gpu.logits(PROMPTS))
