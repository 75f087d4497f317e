"""A control for every prompt: each row of a batch gets what its own control gives alone, however rows are sorted or repeated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import demeanor as dm
from demeanor.algebra.schedule import triangular
from demeanor.controls import Control
from demeanor.errors import ControlError, DataError
from making import PROMPTS, a_direction, ablation, gate_on_length

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5
MORE = [
    *PROMPTS,
    "what is 9 minus 5 ?",
    "how do i kill a process ?",
    "please tell me how to fold a shirt .",
    "good morning , how are you ?",
]


def controls_of(session: dm.Session) -> list[Control | None]:
    """One of every kind, of several ranks and reaches, two of them gated (one open, one shut); two rows share one, one has none."""
    direction = a_direction(session, dm.Site(1), gap=4.0, seed=1)
    other = a_direction(session, dm.Site(1), gap=4.0, seed=2)
    gate = gate_on_length(session, MORE, [True, False] * 4)
    kernel = dm.Scope(layers=triangular(session.layout.n_layers, 1.0, 0.5, 1.0, 0.3))
    shared = ablation(session, rank=5, seed=3)
    return [
        shared.then(dm.add(direction, 1.0)).when(gate),  # open
        dm.add(other, -2.0).when(gate),  # shut
        None,
        shared,
        dm.rotate(direction, other, 60, kernel).then(dm.clamp(other, 3.0)),
        shared,
        dm.scale(other, 2.5, dm.Scope(site=dm.Site(2), tokens="reply")).then(dm.add(direction, 2.0, "positions", (-2, -1))),
        dm.ablate(other, 1.0, dm.Scope(tokens="prompt")).then(dm.add(other, 1.0)),
    ]


def alone(session: dm.Session, control: Control | None, prompt: str, reply: Sequence[int], tokens: int) -> tuple[Tensor, Tensor, str]:
    """What one control gives one prompt: next-token logits, log-probabilities over a reply, and 64 tokens of greedy text."""
    if control is None:
        return session.logits([prompt])[0], session.reply_log_probs([prompt], [reply])[0], session.generate([prompt], tokens)[0].text
    with session.controlled(control):
        return session.logits([prompt])[0], session.reply_log_probs([prompt], [reply])[0], session.generate([prompt], tokens)[0].text


def check_rows(session: dm.Session) -> None:
    controls = controls_of(session)
    replies = [session.encode_reply(text) for text in ("first get the lamp .", "no", "to wash it , use a lamp", "yes")] * 2
    wanted = [alone(session, *row, tokens=64) for row in zip(controls, MORE, replies, strict=True)]
    with session.controlled_rows(controls):
        logits, forced = session.logits(MORE), session.reply_log_probs(MORE, replies)
        said = [reply.text for reply in session.generate(MORE, 64)]
    for row, (own_logits, own_forced, text) in enumerate(wanted):
        assert (logits[row] - own_logits).abs().max() < TOLERANCE, row
        assert (forced[row] - own_forced).abs().max() < TOLERANCE * own_forced.abs().max().clamp_min(1), row
        assert said[row] == text, row
    untouched = session.logits(MORE)
    changed = (logits - untouched).abs().amax(1) > 1e-2
    assert changed.tolist() == [True, False, False, True, True, True, changed[6].item(), True]


def test_every_row_of_the_organism_has_its_own_control(organism: dm.Session) -> None:
    check_rows(organism)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "falcon"])
def test_every_row_of_other_families_has_its_own_control(tiny: dict[str, dm.Session], family: str) -> None:
    check_rows(tiny[family])


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_rows_of_a_model_in_another_precision(tiny_folders: dict[str, Path], dtype: str) -> None:
    """Edits are computed in float32 at least, whatever the stream is held in."""
    session = dm.load(tiny_folders["llama"], device="cpu", dtype=dtype)
    controls = [ablation(session, rank=1, seed=1), None, ablation(session, rank=3, seed=2), dm.clamp(a_direction(session, dm.Site(1)), 2.0)]
    with session.controlled_rows(controls):
        together = session.logits(PROMPTS)
        stream = session.capture(PROMPTS, [dm.Site(2)]).values[:, 0]
    eps = {"bfloat16": 2**-8, "float64": 1e-6}[dtype]
    for row in (0, 2):
        vectors = controls[row].parts[0].vectors  # type: ignore[union-attr]
        assert ((stream[row] @ vectors.T).abs().max() / stream[row].norm()) < eps
    for row, control in enumerate(controls):
        with session.controlled_rows([control]):
            assert (session.logits([PROMPTS[row]])[0] - together[row]).abs().max() < 10 * eps


def test_beams_and_samples_take_their_row_s_control_along(organism: dm.Session) -> None:
    controls = [ablation(organism, rank=30), None, dm.add(a_direction(organism, dm.Site(3), gap=30.0), 1.0).when(
        gate_on_length(organism, PROMPTS[:3], [True, False, True]))]  # fmt: skip
    rows = [organism.encode(prompt) for prompt in PROMPTS[:3]]
    ways = [
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 4, "num_return_sequences": 2, "do_sample": False},
        {"do_sample": True, "top_k": 1, "num_return_sequences": 3},
    ]
    for way in ways:
        kwargs = {"max_new_tokens": 20, "pad_token_id": 0, **way}
        each = int(way.get("num_return_sequences", 1))
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        with organism.controlled_rows(controls):
            together = organism.model.generate(ids, attention_mask=mask, **kwargs)[:, longest:]
        for number, (row, control) in enumerate(zip(rows, controls, strict=True)):
            own = torch.tensor([row])
            with organism.controlled_rows([control]):
                single = organism.model.generate(own, attention_mask=torch.ones_like(own), **kwargs)[:, len(row) :]
            batch = together[number * each : (number + 1) * each, : single.shape[1]]
            assert torch.equal(batch, single), (way, number)
    assert not torch.equal(together[0], together[3])


def test_rows_are_sorted_into_several_batches_without_losing_their_controls(organism: dm.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    controls = controls_of(organism)
    with organism.controlled_rows(controls):
        wanted = organism.logits(MORE)
        monkeypatch.setattr("demeanor.runtime.batches.groups", lambda *_: [[5], [0, 7, 2], [3, 1], [6, 4]])
        assert torch.allclose(organism.logits(MORE), wanted, atol=1e-4)
        sites = [dm.Site(2)]
        together = organism.capture(MORE, sites).values
    for row, control in enumerate(controls):
        with organism.controlled_rows([control]):
            monkeypatch.undo()
            assert torch.allclose(organism.capture([MORE[row]], sites).values[0], together[row], atol=1e-4)


def test_rows_act_on_top_of_a_control_for_all(organism: dm.Session) -> None:
    below, own = ablation(organism, rank=3, seed=5), ablation(organism, rank=3, seed=6)
    with organism.controlled(below):
        base = organism.logits(PROMPTS)
    with organism.controlled(below), organism.controlled_rows([None, own, None, own]):
        mixed = organism.logits(PROMPTS)
    with organism.controlled(below.then(own)):
        both = organism.logits(PROMPTS)
    assert torch.allclose(mixed[[0, 2]], base[[0, 2]], atol=1e-4)
    assert torch.allclose(mixed[[1, 3]], both[[1, 3]], atol=1e-4)


def test_a_dose_is_turned_without_a_hook_being_touched(organism: dm.Session) -> None:
    direction, other = a_direction(organism, dm.Site(2), gap=9.0), a_direction(organism, dm.Site(2), seed=4)
    turned, still = dm.rotate(direction, other, 80).then(dm.add(direction, 1.0)), dm.ablate(other)

    def hooks() -> list[int]:
        return [hook for module in organism.model.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]

    wanted = {}
    for dose in (0.0, 0.5, 1.0):
        with organism.controlled_rows([turned.scaled(dose), still, turned.scaled(dose), None]):
            wanted[dose] = organism.logits(PROMPTS)
    with organism.controlled_rows([turned, still, turned, None]) as rows:
        attached = hooks()
        for dose in (0.0, 0.5, 1.0):
            rows.turn(turned, dose)
            assert torch.allclose(organism.logits(PROMPTS), wanted[dose], atol=1e-5)
        assert hooks() == attached
        with pytest.raises(ControlError, match="No row has this control"):
            rows.turn(dm.ablate(direction), 0.5)
    assert not torch.allclose(wanted[0.5], wanted[1.0], atol=1e-2)


@pytest.mark.parametrize("controls", [1, 3, 5])
def test_as_many_controls_as_prompts(organism: dm.Session, controls: int) -> None:
    with organism.controlled_rows([ablation(organism)] * controls), pytest.raises(DataError, match=f"{controls} controls and 4 prompts"):
        organism.logits(PROMPTS)
    ids = torch.tensor([organism.encode("hello")] * 4)
    if controls > 1:
        with organism.controlled_rows([ablation(organism)] * controls), pytest.raises(ControlError, match="one control per prompt"):
            organism.model(ids)


def test_no_controls_at_all_is_a_mistake(organism: dm.Session) -> None:
    with pytest.raises(DataError, match="no controls"), organism.controlled_rows([]):
        pass


def test_a_control_for_another_structure_is_refused_among_the_rows(organism: dm.Session, tiny: dict[str, dm.Session]) -> None:
    with pytest.raises(ControlError, match="made for structure"), organism.controlled_rows([None, ablation(tiny["llama"])]):
        pass
