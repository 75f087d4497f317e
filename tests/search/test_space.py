"""What a setting makes of a model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import demeanor as dm
from demeanor.finding.find import Findings
from demeanor.finding.plan import SelectivePlan
from demeanor.finding.selective import SelectiveFits
from demeanor.measure import Bench, Ledger
from demeanor.search.space import EVERYWHERE, NO_GATE, Axis, Space
from demeanor.search.trying import Trying
from search.conftest import plan_of

ABLATE = {"kind": "ablate", "estimator": "mean_difference", "layer": 2, "position": -1, **EVERYWHERE}


@pytest.fixture
def space(trying: Trying) -> Space:
    return trying.space


def logits(session: dm.Session, control: dm.Control | None, prompts: list[str]) -> torch.Tensor:
    if control is None:
        return session.logits(prompts)
    with session.controlled(control):
        return session.logits(prompts)


PROMPTS = ["how do i kill a process ?", "what colour is the sky ?"]


def test_a_direction_ablated_everywhere_is_what_ablate_makes_of_it(organism: dm.Session, space: Space) -> None:
    direction = next(d for d in space.findings.directions if d.estimator == "mean_difference" and d.site.layer == 2 and d.site.position == -1)
    own, plain = (logits(organism, control, PROMPTS) for control in (space.control(ABLATE), dm.ablate(direction)))
    assert torch.allclose(own, plain, atol=1e-5)
    assert space.control(ABLATE).bakeable() is None


def test_parts_of_a_model_are_left_alone_at_strength_0_and_below(organism: dm.Session, space: Space) -> None:
    nothing = {**ABLATE, "attn": 0.0, "mlp": -0.3, "embed": 0.0}
    assert torch.equal(logits(organism, space.control(nothing), PROMPTS), logits(organism, None, PROMPTS))
    only = space.control({**nothing, "attn": 1.0})
    assert {part.scope.role for part in only.parts} == {"attn"}


def test_all_kinds_of_writer_at_strength_1_are_every_writer(organism: dm.Session, space: Space) -> None:
    """Each kind is one part, and together they do what one part at every writer does, but for a hair in one of them."""
    apart = space.control({**ABLATE, "embed": 1.05})
    assert {part.scope.role for part in apart.parts} == {"attn", "mlp", "embed"}
    together = logits(organism, space.control(ABLATE), PROMPTS)
    assert 0 < float((logits(organism, apart, PROMPTS) - together).abs().max()) < 0.2 * float(together.std())


def test_a_narrow_kernel_edits_few_layers(space: Space) -> None:
    control = space.control({**ABLATE, "embed": 0.0, "at": 0.4, "width": 0.1, "edge": 0.0})
    weights = [sum(weight > 0 for weight in part.scope.layers or ()) for part in control.parts]
    assert weights
    assert max(weights) == 1


def test_each_layer_s_own_direction_makes_a_part_per_layer(organism: dm.Session, space: Space) -> None:
    control = space.control({**ABLATE, "own": True})
    assert len({tuple(part.vectors.flatten().tolist()) for part in control.parts}) == organism.layout.n_layers
    layers = [[layer for layer, weight in enumerate(part.scope.layers or ()) if weight] for part in control.parts]
    assert sorted(layer for some in layers for layer in some) == sorted([*range(organism.layout.n_layers)] * 2 + [0])


def test_a_push_moves_the_stream_by_its_share_of_the_norm_away_from_shows(organism: dm.Session, space: Space) -> None:
    params = {"kind": "push", "estimator": "mean_difference", "layer": 3, "position": -1, "push": 0.4, "tokens": "last_and_reply"}
    (part,) = space.control(params).parts
    site = dm.Site(3)
    assert float(part.vectors.norm()) == pytest.approx(0.4 * space.norm(site), rel=1e-5)
    prompts = list(space.findings.sets.train["shows"][:8])
    plain = organism.capture(prompts, [site]).values[:, 0]
    with organism.controlled(space.control(params)):
        moved = organism.capture(prompts, [site]).values[:, 0] - plain
    assert torch.allclose(moved, part.vectors.expand_as(moved), atol=1e-3)
    gap = organism.capture(prompts, [site]).values[:, 0].mean(0) - organism.capture(list(space.findings.sets.train["lacks"][:8]), [site]).values[:, 0].mean(0)
    assert float(moved[0] @ gap) < 0


@pytest.mark.parametrize("carried", [1.0, 0.5])
def test_a_transport_carries_shows_to_where_lacks_are(organism: dm.Session, space: Space, carried: float) -> None:
    params = {"kind": "transport", "estimator": "mean_difference", "layer": 3, "position": -1, "carried": carried, "components": 4, "tokens": "last_and_reply"}
    control, site = space.control(params), dm.Site(3)
    assert "run time" in str(control.bakeable())
    shows, lacks = (list(space.findings.sets.train[name]) for name in ("shows", "lacks"))
    means = {name: organism.capture(prompts, [site]).values[:, 0].mean(0) for name, prompts in (("shows", shows), ("lacks", lacks))}
    with organism.controlled(control):
        moved = organism.capture(shows, [site]).values[:, 0].mean(0)
    assert torch.allclose(moved - means["shows"], carried * (means["lacks"] - means["shows"]), atol=1e-2 * float(means["shows"].norm()))


def test_ranks_above_1_add_directions_of_groups_at_right_angles(space: Space) -> None:
    for rank in (1, 2, 4):
        basis = space.basis("projected", dm.Site(3), rank)
        assert 1 <= len(basis) <= rank
        assert torch.allclose(basis @ basis.T, torch.eye(len(basis)), atol=1e-5)
    assert torch.equal(space.basis("projected", dm.Site(3), 2)[0], space.basis("projected", dm.Site(3), 1)[0])


def test_seeds_are_settings_of_the_space(space: Space, trying: Trying) -> None:
    """Every seed lies within the axes; what find chooses comes first, then selective edits, then pushes."""
    best = space.findings.ranked()[0]
    assert any(p["kind"] == "ablate" and p["estimator"] == best.estimator and p["layer"] == best.site.layer for p in trying.seeds[:9])
    assert list(dict.fromkeys(p["kind"] for p in trying.seeds)) == ["ablate", "selective", "push"]
    assert next(p["layer"] for p in trying.seeds if p["kind"] == "selective") == next(d for d in space.findings.ranked() if d.write is None).site.layer
    for params in trying.seeds:
        axes = {**space.common, **space.axes(params["kind"])}
        assert set(params) <= set(axes)
        assert all(_within(axes[name], value) for name, value in params.items())


def test_a_selective_setting_is_that_edit_from_its_layer_on(organism: dm.Session, space: Space, findings: Findings) -> None:
    setting = {"kind": "selective", "layer": 1, "taken": 2.0, "keep": 30.0}
    made = space.control(setting)
    direction = replace(findings.directions[0], site=dm.Site(1))
    behaviour = dm.behaviour("over-refusal").settled(organism)
    alone = SelectiveFits(organism, behaviour, Ledger(organism), 128, heard=32).of(direction, SelectivePlan(keep=30.0), 2.0)
    for module, (v, _) in alone.adapters[0].low_rank.items():
        # What the rows' last digits make of it: the same prompts were read in other batches.
        assert (made.adapters[0].low_rank[module][0] - v).norm() < 0.01 * v.norm()
    firmer = space.control({**setting, "keep": 3.0})
    assert any((firmer.adapters[0].low_rank[module][0] - v).norm() > 0.05 * v.norm() for module, (v, _) in alone.adapters[0].low_rank.items())
    assert space.gates_of(setting) == (NO_GATE,)


def test_too_few_prompts_for_a_selective_edit_are_told_before_any_trial(organism: dm.Session, findings: Findings, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(organism, dm.behaviour("over-refusal").settled(organism), "val", Ledger(organism), max_prompts=32)
    few = replace(findings, sets=replace(findings.sets, train={**findings.sets.train, "shows": findings.sets.train["shows"][:3]}))
    space = Trying(bench, few, plan_of(trials=40)).space
    assert "selective" not in space.common["kind"].choices
    assert "3 train prompts show the behaviour, and 8 are needed" in capsys.readouterr().err


def _within(axis: Axis, value: object) -> bool:
    return value in axis.choices if axis.choices else axis.low <= float(value) <= axis.high  # type: ignore[arg-type]


def test_what_weights_cannot_do_is_not_in_a_space_of_bakeable_controls(organism: dm.Session, trying: Trying) -> None:
    space = Space(organism, trying.findings, trying.space.classes, {}, trying.findings.estimators, bakeable=True)
    assert space.common["kind"].choices == ("ablate",)
    assert "gate" not in space.common
    assert all(params["kind"] == "ablate" for params in space.seeds(trying.findings.directions[:2], trying.findings.directions[:2], (-1.0,)))


def test_a_setting_may_name_a_layer_where_no_direction_was_tried(trying: Trying) -> None:
    """Of a large model selection tries few directions, and random settings name any layer and position of the template."""
    few = replace(trying.findings, directions=trying.findings.directions[:1], candidates=trying.findings.candidates[:1])
    space = Trying(trying.bench, few, trying.plan).space
    for layer in range(few.layer_limit):
        for kind in ({**ABLATE, "own": True}, {"kind": "push", "estimator": "mean_difference", "push": 0.2, "tokens": "last_and_reply"},
                     {"kind": "transport", "estimator": "mean_difference", "carried": 1.0, "components": 2, "tokens": "read"}):
            assert space.control({**kind, "layer": layer, "position": int(few.directions[0].site.position)}).parts
