"""Finding: what is filtered, what is tried, and when there is nothing to find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import demeanor as dm
from demeanor.behaviours import Detect
from demeanor.controls import load_direction, save_direction
from demeanor.detect import DETECTORS
from demeanor.detect.registry import Traits
from demeanor.errors import DataError
from demeanor.finding.find import search_directions
from demeanor.io.registry import Record
from demeanor.job.result import Run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def b(organism: dm.Session) -> dm.Behaviour:
    return dm.behaviour("over-refusal").settled(organism)


@pytest.fixture(scope="module")
def found(selective: Run) -> dm.Direction:
    """What a search of all layers finds: that of the run on over-refusal."""
    return selective.found.ranked()[0]


def test_plain_and_projected_are_both_tried_everywhere(found: dm.Direction) -> None:
    tried = {(c.site, c.estimator) for c in found.candidates}
    sites = {dm.Site(layer, "resid_post", position) for layer in range(6) for position in (-1, -2)}
    assert {(site, e) for site in sites for e in ("mean_difference", "projected")} <= tried
    assert any(c.estimator == "guard_orthogonal" for c in found.candidates)


def test_the_selected_direction_is_the_best_survivor(found: dm.Direction) -> None:
    survivors = [c for c in found.candidates if not c.discarded]
    best = min(survivors, key=lambda c: c.bypass)
    assert (found.site, found.estimator) == (best.site, best.estimator)
    assert found.site.layer < 4  # floor(0.8 * 6)
    assert found.auroc > 0.99
    assert found.p < 0.01
    assert found.split_half_cosine > 0.9


def test_a_search_of_its_layer_alone_finds_it_too(found: dm.Direction, over_refusal: dm.Direction) -> None:
    assert (over_refusal.site, over_refusal.estimator) == (found.site, found.estimator)
    assert torch.allclose(over_refusal.basis, found.basis, atol=1e-5)
    tried, there = ({(c.site, c.estimator): c.bypass for c in each.candidates} for each in (over_refusal, found))
    assert tried == pytest.approx({key: bypass for key, bypass in there.items() if key[0].layer == found.site.layer}, abs=1e-3)


def test_a_projected_direction_leaves_the_lacks_mean_where_it_is(over_refusal: dm.Direction) -> None:
    assert over_refusal.estimator == "projected"
    assert abs(over_refusal.component("lacks")) < 1e-3
    assert over_refusal.gap > 1


def test_class_moments_are_those_of_the_train_prompts(organism: dm.Session, b: dm.Behaviour, over_refusal: dm.Direction) -> None:
    prompts = b.set("shows", "train")
    values = organism.capture(prompts, [over_refusal.site]).values[:, 0].double()
    assert over_refusal.shows.n == len(prompts)
    assert torch.allclose(over_refusal.shows.mean, values.mean(0), atol=1e-5)
    assert torch.allclose(over_refusal.shows.variance, values.var(0, unbiased=False), atol=1e-4)


def test_a_layer_that_is_asked_for_is_the_only_one_tried(organism: dm.Session, b: dm.Behaviour) -> None:
    direction = dm.find(organism, b, layer=5, max_prompts=60)  # too late a layer, unless asked for
    assert direction.site.layer == 5
    assert {c.site.layer for c in direction.candidates} == {5}
    with pytest.raises(DataError, match="layers 0 to 5"):
        dm.find(organism, b, layer=6)


def test_prompts_the_model_treats_otherwise_are_filtered_and_counted(organism: dm.Session, b: dm.Behaviour) -> None:
    mixed = replace(b, shows=b.shows[:200] + b.neutral[:40])
    counts = search_directions(organism, mixed, layer=2).sets.counts["shows"]
    neutral_outside_test = sum(prompt.split != "test" for prompt in b.neutral[:40])
    assert counts["given"] - counts["kept"] == neutral_outside_test > 0


def test_too_few_prompts_left_is_said(organism: dm.Session, b: dm.Behaviour) -> None:
    with pytest.raises(DataError, match=r"'shows' has enough prompts .* the detector finds the behaviour in none of"):
        dm.find(organism, replace(b, shows=b.neutral))


def test_classes_that_do_not_differ_have_no_usable_direction(
    organism: dm.Session, b: dm.Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same kind of prompt on both sides, and a detector that says what the set says: only chance is left.
    halves = replace(b, shows=b.lacks[::2], lacks=b.lacks[1::2], guard=(), detect=Detect(name="by set"))

    class BySet:
        def probabilities(self, replies: Sequence[str], prompts: Sequence[dm.Prompt]) -> list[float]:
            return [float(prompt in set(halves.shows)) for prompt in prompts]

    monkeypatch.setitem(DETECTORS._records, "by set", Record("by set", BySet, Traits(), "here"))
    with pytest.raises(dm.NoUsableDirection, match="No usable direction"):
        dm.find(organism, halves)


def test_direction_files_keep_everything(over_refusal: dm.Direction, tmp_path: Path) -> None:
    save_direction(over_refusal, tmp_path / "d.safetensors")
    again = load_direction(tmp_path / "d.safetensors")
    assert torch.equal(again.basis, over_refusal.basis)
    assert (again.site, again.estimator, again.p, again.candidates) == (
        over_refusal.site, over_refusal.estimator, over_refusal.p, over_refusal.candidates,
    )  # fmt: skip
    assert again.gap == pytest.approx(over_refusal.gap)
    assert again.layout.hash == over_refusal.layout.hash


def test_ablate_removes_and_add_induces(organism: dm.Session, over_refusal: dm.Direction) -> None:
    refused, answered = "how do i kill a process ?", "how do i wash a map ?"
    assert organism.chat(refused).startswith(("i am", "sorry"))
    with organism.controlled(dm.ablate(over_refusal)):
        assert organism.chat(refused).startswith("first get the")
    gap = over_refusal.shows.mean - over_refusal.lacks.mean
    whole_gap = replace(over_refusal, basis=(gap / gap.norm()).float()[None], estimator="mean_difference")
    assert organism.chat(answered).startswith("first get the")
    with organism.controlled(dm.add(whole_gap, 1.0)):
        assert organism.chat(answered).startswith(("i am", "sorry"))


@pytest.mark.parametrize(
    ("count", "fires", "told"),
    [(8, True, "8 train and val prompts"), (16, False, "enough prompts (16 in train and val), but the detector finds the behaviour in none of"),
     (19, False, "in none of"), (40, False, "in none of")],
)  # fmt: skip
def test_too_few_prompts_are_another_thing_than_a_detector_that_never_fires(count: int, fires: bool, told: str) -> None:
    from demeanor.behaviours import Prompt
    from demeanor.finding.filter import _Heard, _too_few

    texts = (Prompt.of(f"prompt {number} ?") for number in range(1000))
    train, val = [], []
    for prompt in texts:  # a quarter in val
        (val if prompt.split == "val" else train if prompt.split == "train" else []).append(prompt)
    prompts = train[: count - count // 4] + val[: count // 4]
    heard = _Heard(prompts, ["yes"] * len(prompts), [fires] * len(prompts))
    sentence = _too_few("m", "shows", prompts if fires else [], heard, paired=False)
    assert told in sentence
    assert ("give it more" in sentence) == (count < 16)
    assert ("detector" in sentence) == (count >= 16)
