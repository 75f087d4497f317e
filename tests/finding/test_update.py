"""Updating a direction is finding it on all prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import demeanor as dm
from demeanor.errors import ControlError, DataError
from demeanor.finding.find import search_directions
from demeanor.finding.update import update
from making import a_direction

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def parts(organism: dm.Session) -> tuple[dm.Behaviour, dm.Behaviour, dm.Behaviour]:
    b = dm.behaviour("refusal").settled(organism)
    first, second = (replace(b, shows=b.shows[start:120:2], lacks=b.lacks[start:120:2]) for start in (0, 1))
    return first, second, replace(b, shows=b.shows[:120], lacks=b.lacks[:120])


def same_site(found: tuple[dm.Direction, ...], like: dm.Direction) -> dm.Direction:
    return next(each for each in found if (each.site, each.estimator) == (like.site, like.estimator))


@pytest.mark.parametrize("estimator", ["mean_difference", "projected"])
def test_it_equals_finding_on_all_prompts(organism: dm.Session, parts, estimator: str) -> None:  # type: ignore[no-untyped-def]
    first, second, both = parts
    begun = next(each for each in search_directions(organism, first, layer=2).directions if each.estimator == estimator)
    updated = update(organism, begun, second)
    whole = same_site(search_directions(organism, both, layer=2).directions, begun)
    assert torch.allclose(updated.direction.basis, whole.basis, atol=1e-5)
    for name in ("shows", "lacks"):
        made, wanted = getattr(updated.direction, name), getattr(whole, name)
        assert made.n == wanted.n
        assert torch.allclose(made.mean, wanted.mean, atol=1e-5)
        assert torch.allclose(made.variance, wanted.variance, atol=1e-4)
    assert updated.direction.gap == pytest.approx(whole.gap, rel=1e-4)
    assert len(updated.drift) == organism.layout.n_layers
    assert updated.drift[2].cosine > 0.9


def test_drift_tells_prompts_of_another_kind(organism: dm.Session, parts) -> None:  # type: ignore[no-untyped-def]
    """Sums against facts turn the mean difference elsewhere, far more than more of the same prompts do."""
    first, second, _ = parts
    begun = search_directions(organism, first, layer=2).ranked()[0]
    neutral = dm.behaviour("over-refusal").settled(organism).neutral
    other = replace(second, lacks=tuple(prompt for prompt in neutral if "plus" in prompt.text or "opposite" in prompt.text))
    same, different = (update(organism, begun, each).drift[2] for each in (second, other))
    assert different.cosine < same.cosine
    assert different.lacks_moved > 2 * same.lacks_moved


def test_what_does_not_merge_is_refused(organism: dm.Session, parts, tiny) -> None:  # type: ignore[no-untyped-def]
    begun = search_directions(organism, parts[0], layer=2).ranked()[0]
    with pytest.raises(ControlError, match="rank 1 by guard_orthogonal"):
        update(organism, replace(begun, estimator="guard_orthogonal"), parts[1])
    with pytest.raises(ControlError, match="no moments of all layers"):
        update(organism, replace(begun, layers=None), parts[1])
    with pytest.raises(ControlError, match="find it anew"):
        update(organism, a_direction(tiny["llama"], dm.Site(0)), parts[1])
    replies = {name: tuple(replace(prompt, reply="hello .") for prompt in parts[1].set(name)) for name in ("shows", "lacks")}
    with pytest.raises(DataError, match="updated by prompts"):
        update(organism, begun, replace(parts[1], **replies))


def test_the_command_writes_a_direction_that_can_be_updated_again(demeanor, organism: dm.Session, parts, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    begun = search_directions(organism, parts[0], layer=2).ranked()[0]
    dm.save_direction(begun, tmp_path / "d")
    ended = demeanor("update", tmp_path / "d", "organism", "-b", "refusal", "--max-prompts", 40, "-o", tmp_path / "d2", "--json")
    told = json.loads(ended.out)
    again = dm.load_direction(tmp_path / "d2")
    assert again.shows.n == begun.shows.n + sum(
        prompt.split == "train" for prompt in dm.behaviour("refusal").settled(organism).set("shows", "train", 40)
    )
    assert len(told["drift"]) == organism.layout.n_layers
    table = demeanor("update", tmp_path / "d2", "organism", "-b", "refusal", "--max-prompts", 40, "-o", tmp_path / "d3")
    assert "What the new prompts changed" in table.out
