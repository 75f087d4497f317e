"""Selective edits: fitted as the formula says, the guard kept in the weights, refused where nothing tells the guard apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

import demeanor as dm
from demeanor.algebra.linear_gate import linear_gate
from demeanor.behaviours import Detect
from demeanor.controls.files import digest
from demeanor.detect import DETECTORS
from demeanor.detect.registry import Traits
from demeanor.errors import CheckFailed, DataError
from demeanor.finding.plan import SelectivePlan
from demeanor.finding.selective import SelectiveFits, climb, firmest, selective
from demeanor.io.registry import Record
from demeanor.measure import Bench, Ledger
from families import FAMILIES
from tests.making import PROMPTS, a_direction, assert_logits

pytestmark = pytest.mark.slow
ONE: dict[str, Any] = {"along": "direction", "keep": 3.0, "keep_last": 0.0, "anyway": True}  # what strengths differ in most


@pytest.fixture(scope="module")
def control(organism: dm.Session, over_refusal: dm.Direction) -> dm.Control:
    return selective(organism, "over-refusal", over_refusal, strength=4)


def test_over_refusal_goes_and_the_guard_stays(organism: dm.Session, control: dm.Control) -> None:
    trial = Bench(organism, "over-refusal").try_(control)
    assert trial.rate("shows_rate") <= 0.05  # type: ignore[operator]
    assert trial.rate("guard_rate") >= 0.95  # type: ignore[operator]
    assert trial.rate("answers_neutral") >= 0.98  # type: ignore[operator]
    assert trial.rate("lacks_rate") <= 0.02  # type: ignore[operator]
    assert trial.drift.kl.value < 0.01


def test_it_is_written_into_the_weights_and_replies_alike_there(organism: dm.Session, control: dm.Control, tmp_path: Path) -> None:
    """Loaded again by plain transformers, without anything of ours."""
    assert control.bakeable() is None
    dm.bake("organism", control, tmp_path / "baked")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "baked", dtype=torch.float32).eval()
    prompts = [
        prompt for name in ("shows", "guard", "neutral") for prompt in dm.behaviour("over-refusal").settled(organism).set(name, "test")[:4]
    ]  # type: ignore[arg-type]
    with organism.controlled(control):
        replies = organism.generate(prompts, 24)
    for prompt, reply in zip(prompts, replies):
        ids = torch.tensor([organism.encode(prompt)])
        out = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=organism.pad_id)
        said = out[0, ids.shape[1] :].tolist()
        assert said[: len(reply.ids)] == list(reply.ids)


def test_it_is_scaled_and_saved_like_any_control(organism: dm.Session, control: dm.Control, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    dm.save_control(control, path)
    again = dm.load_control(path)
    with organism.controlled(control):
        wanted = organism.logits(PROMPTS)
    with organism.controlled(again):
        assert torch.equal(organism.logits(PROMPTS), wanted)
    with organism.controlled(control.scaled(0)):
        nothing = organism.logits(PROMPTS)
    assert torch.allclose(nothing, organism.logits(PROMPTS), atol=1e-5)


def test_strengths_that_share_their_rows_are_those_that_are_fitted_alone(organism: dm.Session, over_refusal: dm.Direction, control: dm.Control) -> None:
    behaviour, ledger = dm.behaviour("over-refusal").settled(organism), Ledger(organism)
    plan = SelectivePlan()
    fits = SelectiveFits(organism, behaviour, ledger, plan.prompts)
    weak, strong = (fits.of(over_refusal, plan, strength) for strength in (1.0, 4.0))
    assert digest(strong) == digest(control) != digest(weak)


class _ByWord:
    """Says that a reply shows the behaviour where its prompt asks for it, whatever a random model says."""

    def probabilities(self, replies: Sequence[str], prompts: Sequence[dm.Prompt]) -> list[float]:
        return [float("wash" in prompt.text) for prompt in prompts]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> dm.Behaviour:
    """A behaviour of made-up prompts that any tiny model can be asked."""
    monkeypatch.setitem(DETECTORS._records, "by word", Record("by word", _ByWord, Traits(), "here"))
    things = [
        f"{one} {other}" for one in ("red", "blue", "old", "new", "big", "tiny") for other in ("map", "egg", "bike", "lamp", "owl", "chair")
    ]
    sets = {
        "shows": [f"how do i wash a {thing} ?" for thing in things], "guard": [f"please wash my {thing} now" for thing in things],
        "lacks": [f"what is a {thing} ?" for thing in things], "neutral": [f"sing of the {thing} and the sea" for thing in things],
    }  # fmt: skip
    prompts = {name: tuple(dm.Prompt.of(text) for text in texts) for name, texts in sets.items()}
    return dm.Behaviour(name="made up", description="", detect=Detect(name="by word"), **prompts)


@pytest.mark.parametrize("family", FAMILIES)
def test_baked_equals_run_time(
    tiny: dict[str, dm.Session], tiny_folders: dict[str, Path], tmp_path: Path, family: str, made_up: dm.Behaviour
) -> None:
    session = tiny[family]
    control = selective(session, made_up, a_direction(session, dm.Site(1)), anyway=True, prompts=12, strength=1.2)
    dm.bake(tiny_folders[family], control, tmp_path / "baked")
    with session.controlled(control):
        wanted = session.logits(PROMPTS)
    assert (wanted - session.logits(PROMPTS)).abs().max() > 0
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "baked", dtype=torch.float32).eval()
    assert_logits(plain, session, wanted)


@pytest.mark.parametrize(("along", "opening"), [("layers", ""), ("direction", ""), ("layers", "please tell me now how to wash a friend's bike , and")])
def test_every_writer_is_fitted_on_what_the_edited_ones_before_it_leave(
    tiny: dict[str, dm.Session], made_up: dm.Behaviour, along: str, opening: str
) -> None:
    """The fifth writer, of the last layer, from prompts run one by one with the first four edited; what all begin with is read before any edit."""
    sets = {name: tuple(dm.Prompt.of(f"{opening} {prompt.text}".strip()) for prompt in getattr(made_up, name)) for name in ("shows", "guard", "lacks", "neutral")}
    made_up = replace(made_up, **sets)
    session, plan = tiny["llama"], {"strength": 1.2, "keep": 2.0, "keep_last": 0.7, "ridge": 1e-3, "prompts": 8, "along": along}
    direction, shared = a_direction(session, dm.Site(1)), session.runner.prefixes["shared"]
    control = selective(session, made_up, direction, anyway=True, **plan)
    assert (session.runner.prefixes["shared"] > shared) is bool(opening)
    fitted = control.adapters[0].low_rank
    names = [writer.module for writer in session.layout.writers if writer.layer >= 0][:5]
    before = replace(control, adapters=(replace(control.adapters[0], low_rank={name: fitted[name] for name in names[:4]}),))
    module, inputs = session.model.get_submodule(names[4]), []
    handle = module.register_forward_hook(lambda m, args, output: inputs.append((args[0][0].double(), output[0].double())))

    alike = [session.encode(prompt) for prompts in sets.values() for prompt in prompts]
    first = next(place for place, tokens in enumerate(zip(*alike)) if len(set(tokens)) > 1) if opening else 0

    def seen(ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs.clear()
        cache = DynamicCache(config=session.model.config)
        with torch.no_grad():
            if first:
                session.model(input_ids=torch.tensor([ids[:first]]), past_key_values=cache, use_cache=True)
            with session.controlled(before):
                session.model(input_ids=torch.tensor([ids[first:]]), past_key_values=cache, use_cache=True)
        return torch.cat([x for x, _ in inputs]), torch.cat([y for _, y in inputs])

    def train(name: str) -> list[dm.Prompt]:
        return made_up.set(name, "train")[:8]  # type: ignore[arg-type]

    shows = [seen(session.encode(prompt)) for prompt in train("shows")]
    kept, last = [], []
    for name in ("guard", "lacks", "neutral"):
        for prompt, reply in zip(train(name), session.generate(train(name))):
            ids = session.encode(prompt)
            kept.append(seen([*ids, *reply.ids]))
            last.append(kept[-1][0][len(ids) - 1])
    handle.remove()
    ends = [session.capture(train(name), [dm.Site(2)]).values[:, 0].double().mean(0) for name in ("shows", "lacks")]
    r = direction.basis.double() if along == "direction" else ((ends[0] - ends[1]) / (ends[0] - ends[1]).norm())[None]
    wanted = 1.2 * (torch.stack([y[-1] for _, y in shows]) @ r.T - (torch.cat([y for _, y in kept]) @ r.T).mean(0))
    stays = [(torch.cat([x for x, _ in kept]), 2.0), (torch.stack(last), 0.7)]
    expected = linear_gate(torch.stack([x[-1] for x, _ in shows]), wanted, stays, 1e-3)
    v, back = fitted[names[4]]
    assert (v.double() - expected).abs().max() < 5e-4 * expected.abs().max()
    assert torch.allclose(back.double(), -r.T, atol=1e-6)


def test_a_model_that_does_not_tell_the_guard_apart_is_not_edited(organism: dm.Session, over_refusal: dm.Direction) -> None:
    alike = dm.behaviour("over-refusal").settled(organism)
    alike = replace(alike, shows=alike.shows[::2], guard=alike.shows[1::2])
    with pytest.raises(CheckFailed, match=r"nor can an edit of its weights be selective.*--anyway"):
        selective(organism, alike, over_refusal)
    assert selective(organism, alike, over_refusal, anyway=True, strength=1.0).adapters


def test_strength_rises_until_more_of_it_is_no_gain(organism: dm.Session, over_refusal: dm.Direction) -> None:
    """Of one direction, strength 1 leaves a third here, 2 next to nothing: one step more is tried, and what was tried is what the bench says."""
    bench = Bench(organism, "over-refusal", "val", max_prompts=24)
    tried = climb(bench, over_refusal, SelectivePlan(**ONE))
    strengths, left = [control.made_from["strength"] for control, _ in tried], [trial.rate("shows_rate") for _, trial in tried]
    assert strengths == [1.0, 2.0, 4.0]
    assert left[0] > 0.1  # type: ignore[operator]
    assert left[1] < 0.05  # type: ignore[operator]
    assert bench.try_(tried[1][0]).scores == tried[1][1].scores


def test_of_a_large_model_no_step_more_is_tried(organism: dm.Session, over_refusal: dm.Direction, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit takes minutes there, so the first strength that leaves nothing is the last."""
    bench = Bench(organism, "over-refusal", "val", max_prompts=24)
    monkeypatch.setattr(organism.runner, "small", False)
    tried = climb(bench, over_refusal, SelectivePlan(**ONE))
    assert [control.made_from["strength"] for control, _ in tried] == [1.0, 2.0]


@pytest.mark.parametrize(("merits", "taken"), [([0.5, 0.9, 0.89], 2), ([0.5, 0.9, 0.8], 1), ([0.95, 0.9, 0.94, 0.2], 2), ([0.7], 0)])
def test_the_strongest_of_those_that_are_as_good_is_taken(organism: dm.Session, control: dm.Control, merits: list[float], taken: int) -> None:
    tried = [(replace(control, made_from={"strength": float(rung)}), SimpleNamespace(merit=merit)) for rung, merit in enumerate(merits)]
    assert firmest(tried) == taken  # type: ignore[arg-type]


def test_a_strength_is_chosen_on_val_where_none_is_given(organism: dm.Session, over_refusal: dm.Direction) -> None:
    assert selective(organism, "over-refusal", over_refusal, prompts=24, **ONE).made_from["strength"] == 2.0


def test_too_few_prompts_are_told(organism: dm.Session, over_refusal: dm.Direction) -> None:
    b: Any = dm.behaviour("over-refusal").settled(organism)
    with pytest.raises(DataError, match="shows the behaviour on 0 train prompts of shows; at least 8"):
        selective(organism, replace(b, shows=b.neutral), over_refusal, anyway=True)
