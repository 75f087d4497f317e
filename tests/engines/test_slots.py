"""Several controls in passes that hold the tokens of many requests: each request has what its control does at run time, and nobody else has any of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import demeanor as dm
from demeanor.algebra.edits import add
from demeanor.controls import Control
from demeanor.engines.named import read_named, refuse_other_model, refuse_unknown, say_untried
from demeanor.engines.slots import Slots, Stage, tokens_of
from demeanor.errors import ControlError
from demeanor.runtime.intervene import Reach
from making import PROMPTS, a_direction, ablation, gate_on_length

FAMILY = "llama"


@pytest.fixture(scope="module")
def llama(tiny: dict[str, dm.Session]) -> dm.Session:
    return tiny[FAMILY]


@pytest.fixture
def plain(tiny_folders: dict[str, Path]) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_folders[FAMILY], dtype=torch.float32).eval()  # nothing of ours


def some_controls(llama: dm.Session) -> dict[str, Control]:
    added = dm.add(a_direction(llama, dm.Site(1), 5.0), 0.8, tokens="all")
    return {
        "ablate": ablation(llama, 2), "add": added, "before a block": dm.add(a_direction(llama, dm.Site(2, "resid_pre"), 4.0, 3), 1.0, tokens="all"),
        "reply": dm.add(a_direction(llama, dm.Site(0), 5.0, 1), 1.0, tokens="reply"), "both": ablation(llama, 1, 0.5, seed=4).then(added),
        "in the order of the pass": dm.clamp(a_direction(llama, dm.Site(2, "resid_pre"), 2.0, 5), 3.0, "all").then(added),
        "clamp": dm.clamp(a_direction(llama, dm.Site(1), 2.0, 2), 3.0),
    }  # fmt: skip


def logits(model: PreTrainedModel, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


def test_each_control_does_what_it_does_at_run_time(llama: dm.Session, plain: PreTrainedModel) -> None:
    controls = some_controls(llama)
    slots = Slots(list(controls.values()), llama.layout)
    slots.lay(plain)
    for number, (name, control) in enumerate(controls.items()):
        with llama.controlled(control):
            wanted = llama.logits(PROMPTS)
        for prompt, row in zip(PROMPTS, wanted):
            ids = llama.encode(prompt)
            slots.take(tokens_of([(number, 0, len(ids), len(ids))], torch.device("cpu")))
            assert (logits(plain, ids) - row).abs().max() < 1e-4 * wanted.std(), name
        if name != "reply":  # there is no reply yet
            assert (llama.logits(PROMPTS) - wanted).abs().max() > 1e-2 * wanted.std(), name


def test_what_acts_on_replies_acts_there_alone(llama: dm.Session, plain: PreTrainedModel) -> None:
    control = some_controls(llama)["reply"]
    slots = Slots([control], llama.layout)
    slots.lay(plain)
    ids, said = llama.encode(PROMPTS[0]), [7, 8]
    with llama.controlled(control):
        wanted = llama.logits([PROMPTS[0]], after=said)[0]
    slots.take(tokens_of([(0, 0, len(ids) + 2, len(ids))], torch.device("cpu")))
    got = logits(plain, ids + said)
    assert (got - wanted).abs().max() < 1e-4 * wanted.std()
    slots.take(None)
    assert (logits(plain, ids + said) - wanted).abs().max() > 1e-2 * wanted.std()


def test_tokens_of_others_keep_their_bits(llama: dm.Session) -> None:
    rng = torch.Generator().manual_seed(0)
    block = torch.nn.Identity()
    stage = Stage([None, (Reach(), add(torch.ones(8)))])
    slots = Slots([], llama.layout)
    slots.places = {"0": [stage]}
    model = torch.nn.Sequential(block)
    model.register_parameter("somewhere", torch.nn.Parameter(torch.zeros(1)))
    slots.lay(model)
    x = torch.randn(9, 8, generator=rng)
    slots.take(tokens_of([(None, 0, 3, 3), (1, 0, 4, 4), (0, 0, 2, 2)], torch.device("cpu")))
    got = model(x)
    assert torch.equal(got[:3], x[:3])
    assert torch.equal(got[7:], x[7:])
    assert torch.allclose(got[3:7], x[3:7] + 1)


def test_positions_count_from_the_end_of_the_prompt_in_any_piece_of_it() -> None:
    whole = tokens_of([(2, 0, 5, 5)], torch.device("cpu"))
    pieces = [tokens_of([(None, 0, 2, 9), (2, first, count, 5)], torch.device("cpu")) for first, count in ((0, 3), (3, 2), (5, 1))]
    assert whole is not None
    assert whole.position.tolist() == [-5, -4, -3, -2, -1]
    assert [position for piece in pieces if piece is not None for position in piece.position.tolist()] == [-5, -4, -3, -2, -1, 0]
    assert all(piece is not None and piece.index[0] == 2 for piece in pieces)
    assert tokens_of([(None, 0, 4, 4)], torch.device("cpu")) is None


def test_what_cannot_be_carried_is_refused(tiny: dict[str, dm.Session], llama: dm.Session, tmp_path: Path) -> None:
    dm.save_control(ablation(llama).when(gate_on_length(llama, PROMPTS, [True, False, False, False])), tmp_path / "gated.safetensors")
    dm.save_control(ablation(tiny["gemma2"]), tmp_path / "norms.safetensors")
    dm.save_control(ablation(llama), tmp_path / "plain.safetensors")
    other = ablation(tiny["gpt2"])
    dm.save_control(other, tmp_path / "other.safetensors")
    for text, why in {
        f"a={tmp_path}/gated.safetensors": "it holds gates", f"a={tmp_path}/norms.safetensors": "a norm behind them", "a": "takes NAME=FILE",
        f"a={tmp_path}/plain.safetensors a={tmp_path}/plain.safetensors": "each name once", "'a": "cannot be read",
        f"a={tmp_path}/plain.safetensors b={tmp_path}/other.safetensors": "2 different structures",
    }.items():  # fmt: skip
        with pytest.raises(ControlError, match=why):
            read_named(text)
    named = read_named(f"calm={tmp_path}/plain.safetensors half={tmp_path}/plain.safetensors:0.5")
    assert named["half"].parts[0].dose == 0.5
    with pytest.raises(ControlError, match="no control 'loud'; name one of calm, half"):
        refuse_unknown("loud", named)
    with pytest.raises(ControlError, match="started with none"):
        refuse_unknown("calm", {})
    with pytest.raises(ControlError, match="made for llama with 3 layers"):
        refuse_other_model(llama.layout, "qwen2", 3, llama.layout.d_model)
    with pytest.raises(ControlError, match="before layer 0"):
        Slots([dm.add(a_direction(llama, dm.Site(0, "resid_pre")), 1.0, tokens="all")], llama.layout)


def test_an_untried_structure_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    say_untried("llama")
    assert capsys.readouterr().err == ""
    say_untried("falcon")
    assert "not tried in an engine on falcon models" in capsys.readouterr().err


def test_a_model_without_a_place_is_refused(llama: dm.Session) -> None:
    with pytest.raises(ControlError, match=r"Sequential\) has no model\."):
        Slots([ablation(llama)], llama.layout).lay(torch.nn.Sequential(torch.nn.Linear(2, 2)))
