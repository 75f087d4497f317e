"""Quick values: many controls at once give what each gives alone, gates cost nothing, and what is beaten is read no further."""

from __future__ import annotations

import pytest
import torch

import demeanor as dm
from demeanor.search.objective import FIRST, Asked, Objective, Quick
from demeanor.search.space import EVERYWHERE, NO_GATE
from demeanor.search.surrogates import ShortReplies
from demeanor.search.trying import Trying

SETTINGS = [
    {"kind": "ablate", "estimator": "mean_difference", "layer": 2, "position": -1, **EVERYWHERE},
    {"kind": "ablate", "estimator": "projected", "layer": 3, "position": -1, **EVERYWHERE, "mlp": 0.4, "own": True},
    {"kind": "push", "estimator": "mean_difference", "layer": 2, "position": -1, "push": 0.5, "tokens": "read"},
]


def test_several_controls_in_one_batch_give_what_each_gives_alone(trying: Trying) -> None:
    controls = [trying.space.control(params) for params in SETTINGS]
    together = trying.objective.surrogate.read(controls, 0, 6)
    for control, read in zip(controls, together):
        (alone,) = trying.objective.surrogate.read([control], 0, 6)
        for name, value in vars(read).items():
            assert torch.allclose(value, getattr(alone, name), atol=1e-5), name


def test_quick_values_of_the_untouched_model_are_its_own(trying: Trying) -> None:
    untouched = trying.objective.untouched
    assert float(untouched.shows.min()) > 0.5  # prompts on which it shows the behaviour
    assert float(untouched.guard.min()) > 0.5
    assert float(untouched.drift.abs().max()) < 1e-6


def test_drift_is_that_of_the_bench_over_the_first_tokens(organism: dm.Session, trying: Trying) -> None:
    """Against teacher-forcing one prompt at a time."""
    control, surrogate = trying.space.control(SETTINGS[0]), trying.objective.surrogate
    (read,) = surrogate.read([control], 0, 4)
    for number in range(4):
        prompt, said = surrogate.prompts.ordinary[number], surrogate.said[number]  # type: ignore[attr-defined]
        base = organism.reply_log_probs([prompt], [said])[0].double()
        with organism.controlled(control):
            moved = organism.reply_log_probs([prompt], [said])[0].double()
        assert float(read.drift[number]) == pytest.approx(float((base.exp() * (base - moved)).sum(-1).mean()), abs=1e-5)


def test_a_gated_trial_is_what_the_gated_control_does(organism: dm.Session, trying: Trying) -> None:
    """The gate's held-out decisions may differ from its own on few prompts; where they agree the values do."""
    name = next(iter(trying.fires))
    (by_gate,) = trying.objective.quick([Asked(trying.space.control(SETTINGS[0]), (NO_GATE, name))], [])
    plain, gated = by_gate[NO_GATE], by_gate[name]
    assert gated.left == pytest.approx(plain.left, abs=0.1)  # it fires on shows
    assert plain.guard is not None
    assert gated.guard is not None
    assert gated.guard > 0.9 > plain.guard
    fires = trying.objective.fires[name]
    control = trying.space.control(SETTINGS[0]).when(trying.space.gates[name])
    (read,) = trying.objective.surrogate.read([control], 0, len(trying.objective.surrogate.prompts))
    assert float((read.guard - trying.objective.untouched.guard)[fires.guard == 0].abs().median()) < 1e-5


def test_what_is_beaten_on_the_first_prompts_is_read_no_further(trying: Trying) -> None:
    objective = Objective(trying.objective.surrogate, trying.objective.fires)
    assert objective.count > FIRST
    nothing = {**SETTINGS[0], "attn": 0.0, "mlp": 0.0, "embed": 0.0}
    perfect = Quick(left=0.0, drift=0.0, guard=1.0, shown=0.0, seen=objective.count, whole=True, best=(0.0, 0.0, 0.0))
    asked = [Asked(trying.space.control(params), (NO_GATE,)) for params in (nothing, SETTINGS[0])]
    beaten = objective.quick(asked, [perfect])
    assert not beaten[0][NO_GATE].whole
    assert beaten[0][NO_GATE].seen == FIRST
    assert all(values[NO_GATE].whole for values in objective.quick(asked, []))


def test_short_replies_tell_the_rates_of_whole_ones(trying: Trying) -> None:
    """What larger models are read by, on the embedded one: the detector's share on beginnings is that on whole replies."""
    prompts = trying.objective.surrogate.prompts
    surrogate = ShortReplies(trying.bench, prompts)
    control = trying.space.control(SETTINGS[0])
    untouched, read = surrogate.read([None, control], 0, 8)
    assert float(untouched.shows.mean()) > 0.9
    shown = trying.bench.on({"shows": prompts.shows[:8], "guard": prompts.guard[:8]}).try_(control)
    assert float(read.shows.mean()) == pytest.approx(shown.rate("shows_rate") or 0.0, abs=0.2)
    assert float(read.guard.mean()) == pytest.approx(shown.rate("guard_rate") or 0.0, abs=0.2)
    assert float(read.drift.mean()) > 0
