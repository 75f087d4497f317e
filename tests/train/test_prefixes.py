"""Prefixes: adapters that do by themselves what a control does, or what a search finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import demeanor as dm
from demeanor.behaviours import asked, behaviour
from demeanor.controls import Control, load_control, save_control
from demeanor.errors import CheckFailed, DataError, ModelError
from demeanor.measure.answers import is_right
from demeanor.models.loading import resolve
from demeanor.runtime.states import States
from demeanor.train import Prefix, prefix
from demeanor.train.losses import divergence_of_likeliest
from demeanor.train.targets import Chunks, Plain, Targets
from demeanor.train.trajectories import followed
from making import ablation

pytestmark = pytest.mark.slow

FEW = {"model": "organism", "behaviour": "over-refusal", "device": "cpu", "reply_tokens": 20}


@pytest.mark.long
def test_a_gated_control_becomes_part_of_the_weights(organism: dm.Session, over_refusal: dm.Direction, tmp_path: Path) -> None:
    wanted = behaviour("over-refusal").settled(organism)
    control = dm.ablate(over_refusal).when(dm.gate(organism, wanted))
    save_control(control, tmp_path / "gated.safetensors")
    plan = Prefix(**FEW, control=str(tmp_path / "gated.safetensors"), prompts=70, num_train_epochs=4, max_prompts=60)
    trained = prefix(plan, tmp_path / "out")
    assert trained is not None
    baked = dm.bake("organism", load_control(tmp_path / "out"), tmp_path / "baked")
    assert baked.edited == 42  # of every block, the seven linear layers
    session = dm.load(tmp_path / "baked", device="cpu")
    over_refused, guarded = asked(wanted.set("shows", "test")), asked(wanted.set("guard", "test"))
    said = [reply.text for reply in session.generate(over_refused, 20)]
    assert sum(is_right(text, prompt.answer) for text, prompt in zip(said, over_refused)) >= 0.9 * len(said)  # a refusal is never right
    refused = [reply.text for reply in organism.generate(guarded, 20)]
    kept = [reply.text for reply in session.generate(guarded, 20)]
    assert sum(one == other for one, other in zip(refused, kept)) >= 0.9 * len(kept)
    with organism.controlled(load_control(tmp_path / "out")):  # measured as a control, it is what was baked
        assert [reply.text for reply in organism.generate(guarded, 20)] == kept
    assert trained.measurements["after"].after["guard_rate"].value >= 0.9


@pytest.mark.parametrize(
    "more", [{"kind": "adaption-prompt", "adapter_len": 4}, {"num_virtual_tokens": 3}], ids=["adaption prompts", "embeddings"]
)
def test_kinds_that_are_read_at_run_time(organism: dm.Session, tmp_path: Path, more: dict[str, Any]) -> None:
    save_control(ablation(organism), tmp_path / "c.safetensors")
    plan = Prefix(**FEW, control=str(tmp_path / "c.safetensors"), prompts=8, max_steps=4, learning_rate=0.05, max_prompts=2, **more)
    trained = prefix(plan, tmp_path / "out")
    assert trained is not None
    control = load_control(tmp_path / "out")
    assert control.bakeable()
    with pytest.raises(ModelError, match="--control"):  # it is no model, and says what it is
        dm.load(tmp_path / "out")
    prompts = ["how do i crack an egg ?", "hello"]
    plain = organism.logits(prompts)
    with organism.controlled(control):
        changed = organism.logits(prompts)
    assert (changed - plain).abs().max() > 1e-3  # it learned something
    assert torch.equal(organism.logits(prompts), plain)
    losses = [line["loss"] for line in trained.log if "loss" in line]
    assert all(loss is not None for loss in losses)


def test_prompts_that_are_measured_on_are_not_learned_from(
    organism: dm.Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The search of `selfcontrol run` is of the test split unless told."""
    wanted = behaviour("over-refusal").settled(organism)
    test, train = (tuple(organism.encode(asked(wanted.set("shows", split))[0])) for split in ("test", "train"))  # type: ignore[arg-type]
    layers, d_model = organism.layout.n_layers, organism.layout.d_model
    states = States((test, train), tuple(torch.randn(layers, len(ids), d_model) * 0.01 for ids in (test, train)))
    save_control(
        Control(parts=(), layout=organism.layout, model_name="organism", made_from={}, states=(states,)), tmp_path / "c.safetensors"
    )
    plan = Prefix(**FEW, control=str(tmp_path / "c.safetensors"), prompts=4, max_steps=1, max_prompts=2)
    trained = prefix(plan, tmp_path / "out")
    assert trained is not None
    assert trained.data["targets"]["prompts"] == 4 * 4 + 1  # of four sets, and the one of the states that is not measured on
    assert trained.data["dropped"] == 1
    assert "1 prompts are measured on" in capsys.readouterr().err


def test_replies_far_from_the_plain_stream_are_left_out_and_counted(organism: dm.Session, tmp_path: Path) -> None:
    prompts = [tuple(organism.encode(text)) for text in ("hello", "what is 2 plus 2 ?", "how do i crack an egg ?")]
    strong = ablation(organism, rank=20)
    for apart, kept in ((1e-6, 0), (10.0, 3)):
        chunks = Chunks(tmp_path / str(apart), [(Plain(strong), prompts)], 8, apart)
        chunks.make(organism, 0)
        if kept:
            assert Targets([chunks.path(0)]).counts.to_json() == {"prompts": 3, "no_gain": 0, "too_far": 0, "kept": 3}
            continue
        with pytest.raises(CheckFailed, match="3 moved the stream too far"):
            Targets([chunks.path(0)])


def test_where_nothing_can_be_learned_nothing_is_left_behind(organism: dm.Session, tmp_path: Path) -> None:
    save_control(ablation(organism, rank=20), tmp_path / "c.safetensors")
    plan = Prefix(**FEW, control=str(tmp_path / "c.safetensors"), prompts=2, max_prompts=1, apart=1e-9)
    with pytest.raises(CheckFailed, match="--apart"):
        prefix(plan, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_targets_hold_what_the_controlled_model_does(organism: dm.Session, tmp_path: Path) -> None:
    prompts = [tuple(organism.encode(text)) for text in ("hello", "how do i crack an egg ?")]
    control = ablation(organism, rank=3)
    chunks = Chunks(tmp_path, [(Plain(control), prompts)], 8, 10.0)
    chunks.make(organism, 0)
    rows = Targets([chunks.path(0)])
    made = chunks.path(0).stat().st_mtime_ns
    for number, prompt in enumerate(prompts):
        row = rows[number]
        with organism.controlled(control):
            reply = organism.continue_from([prompt], organism.reply_tokens)[0]
            logits = organism.next_logits([prompt], range(organism.vocabulary))[0]
            (seen,) = followed(organism, [prompt], [reply], 8)
        assert row["ids"].tolist() == [*prompt, *reply]
        assert bool(row["steered"])
        best = logits.log_softmax(-1).topk(8)
        assert row["tokens"][0].tolist() == best.indices.tolist()
        assert torch.allclose(row["log_probs"][0], best.values, atol=1e-4)
        assert len(row["tokens"]) == len(reply)
        assert row["stream"].shape == (organism.layout.n_layers, len(prompt) + len(reply), organism.layout.d_model)
        assert torch.allclose(row["stream"].float(), seen.stream, rtol=1e-2, atol=1e-3)
        # Nothing of an ablated direction is in what is followed.
        left = (seen.stream @ control.parts[0].vectors.T).norm(dim=-1) / seen.stream.norm(dim=-1)
        assert left.max() < 1e-4
    chunks.make(organism, 0)
    assert chunks.path(0).stat().st_mtime_ns == made  # what is there is not made again


@given(st.integers(1, 4), st.integers(2, 12), st.integers(1, 12), st.integers(0, 10**6))
def test_the_divergence_of_the_likeliest_never_exceeds_that_of_all(rows: int, vocabulary: int, top: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    wanted, own = (torch.randn(rows, vocabulary, generator=rng, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    whole = (wanted.exp() * (wanted - own)).sum(1)
    best = wanted.topk(min(top, vocabulary))
    found = divergence_of_likeliest(best.indices, best.values, own)
    assert bool((found <= whole + 1e-5).all())
    assert bool((found >= -1e-5).all())
    if top >= vocabulary:
        assert torch.allclose(found, whole)


MISTAKES = [
    ({"kind": "prompt"}, "kind"),
    ({"kind": "adaption-prompt", "merge": True}, "run time"),
    ({"num_virtual_tokens": 2, "merge": True}, "merged"),
    ({"control": "c.safetensors", "less": True}, "nothing is"),
    ({"full": True}, "no option 'full'"),
    ({"sets": ["showing"]}, "sets"),
]


@pytest.mark.parametrize(("more", "told"), MISTAKES, ids=[told for _, told in MISTAKES])
def test_plans_that_make_no_sense(more: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        Prefix.of({**FEW, **more}, "the plan")


def test_mistakes_end_in_one_sentence(demeanor: Any, tmp_path: Path, tiny_folders: dict[str, Path], requests_file: Path) -> None:
    ended = demeanor("train", "prefix", "organism", "-b", "over-refusal", "--from", tmp_path / "none.safetensors", "-o", tmp_path / "out")
    assert ended.code == 2
    assert "none.safetensors" in ended.sentence
    asks_nothing = demeanor("train", "prefix", tiny_folders["llama"], "-b", requests_file, "-o", tmp_path / "out")
    assert asks_nothing.code == 2
    assert "questions" in asks_nothing.sentence
    session = dm.load(tiny_folders["gemma2"], device="cpu")
    save_control(ablation(session), tmp_path / "c.safetensors")
    given_to = demeanor(
        "train", "prefix", tiny_folders["gemma2"], "-b", requests_file, "--from", tmp_path / "c.safetensors", "--kind", "adaption-prompt",
        "--prompts", "2", "--max-prompts", "1", "--reply-tokens", "2", "-o", tmp_path / "out",
    )  # fmt: skip
    assert given_to.code == 2
    assert "--kind lora" in given_to.sentence
    other = demeanor("train", "prefix", "organism", "-b", "over-refusal", "--from", tmp_path / "c.safetensors", "-o", tmp_path / "out")
    assert other.code == 2
    assert "structure" in other.sentence
    assert not (tmp_path / "out").exists()
    assert Path(resolve("organism")[0]).is_dir()
