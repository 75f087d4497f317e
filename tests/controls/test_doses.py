"""A dose is a finite number of a sensible size, wherever it comes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import demeanor as dm
from demeanor.algebra.doses import LARGEST_DOSE, usable_dose
from demeanor.controls import Control, load_control, save_control
from demeanor.errors import ControlError
from demeanor.runtime.adapter import Adapter
from demeanor.runtime.states import States
from making import a_direction, ablation

WRONG = [float("nan"), float("inf"), -float("inf"), 1e9, -101.0]


def with_adapter(session: dm.Session, dose: float = 1.0) -> Control:
    adapter = Adapter(low_rank={"model.layers.0.self_attn.q_proj": (torch.ones(1, 48), torch.ones(48, 1))}, dose=dose)
    return Control(parts=(), layout=session.layout, model_name=session.name, adapters=(adapter,))


def with_states(session: dm.Session, dose: float = 1.0) -> Control:
    states = States(((5, 6),), (torch.zeros(3, 2, 48),), dose)
    return Control(parts=(), layout=session.layout, model_name=session.name, states=(states,))


KINDS: dict[str, Callable[[dm.Session], Control]] = {
    "ablate": ablation,
    "add": lambda session: dm.add(a_direction(session, dm.Site(1)), 0.5),
    "scale": lambda session: dm.scale(a_direction(session, dm.Site(1)), 2.0),
    "clamp": lambda session: dm.clamp(a_direction(session, dm.Site(1))),
    "adapter": with_adapter,
    "states": with_states,
}


@pytest.mark.parametrize("dose", WRONG)
@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_control_takes_one_that_is_none(tiny: Mapping[str, dm.Session], tmp_path: Path, kind: str, dose: float) -> None:
    control = KINDS[kind](tiny["llama"])
    with pytest.raises(ControlError, match=r"usable edit|cannot be scaled"):
        control.scaled(dose)
    save_control(control, tmp_path / "c.safetensors")
    with pytest.raises(ControlError, match=r"usable edit|cannot be scaled"):
        load_control(f"{tmp_path / 'c.safetensors'}:{dose}")


@pytest.mark.parametrize("dose", WRONG)
@pytest.mark.parametrize("make", [with_adapter, with_states])
def test_nor_is_one_made_with_it(tiny: Mapping[str, dm.Session], make: Callable[..., Control], dose: float) -> None:
    with pytest.raises(ControlError, match=r"not a usable edit; .* takes numbers from -100 to 100"):
        make(tiny["llama"], dose)


def test_nor_does_it_grow_beyond_step_by_step(tiny: Mapping[str, dm.Session]) -> None:
    def tenfold(control: Control, times: int) -> Control:
        return tenfold(control.scaled(10), times - 1) if times else control

    for make in KINDS.values():
        with pytest.raises(ControlError):
            tenfold(make(tiny["llama"]), 20)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "1", None])
def test_layers_are_weighed_with_numbers(weight: Any) -> None:
    with pytest.raises(ControlError, match="finite numbers"):
        dm.Scope(layers=(1.0, weight, 0.0))


@pytest.mark.parametrize("dose", ["1", None, True, [1.0], 1j])
def test_what_is_no_number_is_told(tiny: Mapping[str, dm.Session], dose: Any) -> None:
    for make in KINDS.values():
        with pytest.raises(ControlError, match="A number"):
            make(tiny["llama"]).scaled(dose)


@given(dose=st.one_of(st.floats(), st.integers()))
def test_a_usable_dose_is_finite_and_not_larger_than_the_largest(dose: float) -> None:
    usable = abs(dose) <= LARGEST_DOSE  # false for nan
    try:
        usable_dose(dose, "a control")
    except ControlError:
        assert not usable
    else:
        assert usable
