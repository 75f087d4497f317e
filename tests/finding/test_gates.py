"""Gates fire on what they should, keep their false-positive rate, and are saved with the control."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import demeanor as dm
from demeanor.controls import load_control, save_control
from demeanor.errors import CheckFailed, DataError
from demeanor.finding.gates import _fit, _threshold, fires_on
from making import PROMPTS, ablation, gate_on_length

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gate(organism: dm.Session) -> dm.Gate:
    return dm.gate(organism, dm.behaviour("over-refusal"), false_positives=0.05)


def test_it_tells_over_refused_from_guarded_prompts_it_never_saw(organism: dm.Session, gate: dm.Gate) -> None:
    b = dm.behaviour("over-refusal").settled(organism)
    shows, guard = (fires_on(organism, gate, b.set(name, "test")) for name in ("shows", "guard"))  # type: ignore[arg-type]
    assert sum(shows) / len(shows) >= 0.95
    assert sum(guard) / len(guard) <= 0.05


@pytest.mark.parametrize("target", [0.01, 0.05, 0.2])
def test_the_threshold_keeps_the_false_positive_rate_and_spends_no_more_than_it_gains(target: float) -> None:
    rng = torch.Generator().manual_seed(0)
    negative = torch.randn(200, generator=rng, dtype=torch.float64)
    positive = torch.randn(100, generator=rng, dtype=torch.float64) + 1.5  # they overlap

    def rates(threshold: float) -> tuple[float, float]:
        return float((positive > threshold).double().mean()), float((negative > threshold).double().mean())

    hits, false = rates(_threshold(positive, negative, target))
    assert false <= target
    every = [rates(float(value) - 1e-9) for value in torch.cat([positive, negative])]
    assert hits - false == pytest.approx(max(h - f for h, f in every if f <= target))


def test_like_shows_and_unlike_each_other_set_is_learnt_where_no_single_probe_could() -> None:
    # Two bits: shows have both, each other set lacks one of them; held against both, one probe sees an XOR's half.
    rng = torch.Generator().manual_seed(0)

    def rows(a: int, b: int) -> torch.Tensor:
        bits = torch.tensor([a, b, a * b], dtype=torch.float64)
        return bits + 0.15 * torch.randn(80, 3, generator=rng, dtype=torch.float64)

    made, _, _ = _fit(dm.Site(0), {"shows": rows(1, 1), "guard": rows(1, 0), "lacks": rows(0, 1)}, 0.05, "probe")
    assert made.weights.shape == (2, 3)
    assert made.fires(rows(1, 1).float()).double().mean() > 0.95
    for bits in ((1, 0), (0, 1), (0, 0)):
        assert made.fires(rows(*bits).float()).double().mean() < 0.05


def test_rates_of_a_gate_are_of_prompts_it_was_not_fitted_on(organism: dm.Session) -> None:
    rng = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(40, 300, generator=rng, dtype=torch.float64) for name in ("shows", "guard")}
    made, fires, _ = _fit(dm.Site(0), noise, 0.05, "probe")  # 300 channels fit 80 rows of noise without a mistake
    assert made.auroc < 0.7
    assert fires["shows"].double().mean() < 0.6  # in-sample it would be 1


def test_where_the_sets_are_apart_the_threshold_is_in_the_middle() -> None:
    assert _threshold(torch.tensor([3.0, 5.0]), torch.tensor([-1.0, 1.0]), 0.05) == 2.0


def test_a_set_that_is_missing_is_named(organism: dm.Session) -> None:
    with pytest.raises(DataError, match="0 train and val prompts in 'guard'"):
        dm.gate(organism, dm.behaviour("refusal"))


def test_sets_that_cannot_be_told_apart_make_no_gate(organism: dm.Session) -> None:
    b = dm.behaviour("over-refusal").settled(organism)
    same = replace(b, shows=b.lacks[::2], guard=b.lacks[1::2])
    with pytest.raises(CheckFailed, match="No site tells shows from guard"):
        dm.gate(organism, same)


def test_this_and_not_that(organism: dm.Session, tmp_path: Path) -> None:
    """A control behind two gates acts where both fire, whatever sites they read, and its file keeps both."""
    first = gate_on_length(organism, PROMPTS, [True, True, False, False])
    second = gate_on_length(organism, PROMPTS, [True, False, True, False])
    control = ablation(organism, rank=2)
    plain = organism.logits(PROMPTS)
    with organism.controlled(control):
        edited = organism.logits(PROMPTS)
    for gated, fires in (
        (control.when(first).when(second), [0]),
        (control.when(first).when(~second), [1]),
        (control.when(~first).when(~second), [3]),
    ):
        save_control(gated, tmp_path / "c.safetensors")
        with organism.controlled(load_control(tmp_path / "c.safetensors")):
            seen = organism.logits(PROMPTS)
        for row in range(len(PROMPTS)):
            assert torch.allclose(seen[row], (edited if row in fires else plain)[row], atol=1e-4)


def test_control_files_keep_parts_gates_and_doses(organism: dm.Session, tmp_path: Path, over_refusal: dm.Direction) -> None:
    gate = gate_on_length(organism, PROMPTS, [True, False, True, False])
    control = ablation(organism, rank=2).when(gate).then(dm.add(over_refusal, -0.5))
    save_control(control, tmp_path / "c.safetensors")
    again = load_control(tmp_path / "c.safetensors")
    assert str(again) == str(control)
    with organism.controlled(control):
        wanted = organism.logits(PROMPTS)
    with organism.controlled(again):
        assert torch.equal(organism.logits(PROMPTS), wanted)
    half = load_control(f"{tmp_path}/c.safetensors:0.5")
    assert [part.dose for part in half.parts] == [0.5, -0.25]
    untouched = organism.logits(PROMPTS)
    with organism.controlled(load_control(f"{tmp_path}/c.safetensors:0")):
        assert torch.allclose(organism.logits(PROMPTS), untouched, atol=1e-6)


def test_a_file_that_is_no_control_is_named(organism: dm.Session, tmp_path: Path, over_refusal: dm.Direction) -> None:
    dm.save_direction(over_refusal, tmp_path / "d.safetensors")
    with pytest.raises(DataError, match=r"is not a control file .it holds direction"):
        load_control(tmp_path / "d.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\x00\x00")
    with pytest.raises(DataError, match="not a complete safetensors file"):
        load_control(tmp_path / "broken.safetensors")
    with pytest.raises(DataError, match="no control file"):
        load_control(tmp_path / "nothing.safetensors")


def test_a_cosine_gate_reads_the_angle_and_not_the_length(organism: dm.Session) -> None:
    b = dm.behaviour("over-refusal").settled(organism)
    made = dm.gate(organism, b, kind="cosine")
    shows, guard = (fires_on(organism, made, b.set(name, "test")) for name in ("shows", "guard"))  # type: ignore[arg-type]
    assert sum(shows) / len(shows) >= 0.75  # a probe does better
    assert sum(guard) / len(guard) <= 0.1
    values = organism.capture(PROMPTS, [made.site]).values[:, 0]
    direction = made.weights[0] / made.weights[0].norm()
    cosines = torch.nn.functional.cosine_similarity(values, direction[None])
    assert torch.allclose(made.margin(values), cosines + made.biases[0], atol=1e-5)
    assert torch.allclose(made.margin(7 * values), made.margin(values), atol=1e-5)
    with pytest.raises(DataError, match="'probe' or 'cosine', not 'angle'"):
        dm.gate(organism, b, kind="angle")  # type: ignore[arg-type]


def test_a_negated_gate_fires_elsewhere_and_survives_its_file(organism: dm.Session, gate: dm.Gate, tmp_path: Path) -> None:
    b = dm.behaviour("over-refusal").settled(organism)
    prompts = [*b.set("shows", "test", 8), *b.set("guard", "test", 8)]
    fires = fires_on(organism, gate, prompts)
    assert True in fires
    assert False in fires
    assert fires_on(organism, ~gate, prompts) == [not fired for fired in fires]
    save_control(ablation(organism).when(~gate), tmp_path / "c.safetensors")
    (part,) = load_control(tmp_path / "c.safetensors").parts
    (kept,) = part.gates
    assert str(kept) == str(~gate)
    assert fires_on(organism, kept, prompts) == [not fired for fired in fires]
    assert kept.roc == gate.roc


def test_the_roc_curve_is_of_all_held_out_thresholds() -> None:
    rng = torch.Generator().manual_seed(0)
    values = {name: torch.randn(60, 4, generator=rng, dtype=torch.float64) + shift for name, shift in (("shows", 0.7), ("guard", 0.0))}
    made, fires, _ = _fit(dm.Site(0), values, 0.1, "probe")
    assert made.roc[0] == (0.0, 0.0)
    assert made.roc[-1] == (1.0, 1.0)
    assert list(made.roc) == sorted(made.roc)
    assert len(made.roc) <= 51
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip(made.roc, made.roc[1:]))
    assert area == pytest.approx(made.auroc, abs=0.02)
    assert made.false_positives == pytest.approx(float(fires["guard"].double().mean()))
