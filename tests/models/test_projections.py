"""The stream along a direction, by layer and token."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

import demeanor as dm
from demeanor.errors import DataError
from making import ablation, basis_of

QUESTION, REPLY = "how do i wash a map ?", "first get the lamp"


def test_values_are_the_cosines_of_what_is_captured(session: dm.Session) -> None:
    direction = basis_of(session, 1)[0]
    seen = session.projections(QUESTION, 3 * direction, REPLY)
    said = session.encode_reply(REPLY)
    assert seen.prompt_tokens == len(session.encode(QUESTION))
    assert len(seen.tokens) == seen.prompt_tokens + len(said) == seen.values.shape[1]
    sites = [dm.Site(layer, position=-1 - back) for layer in range(session.layout.n_layers) for back in range(3)]
    streams = session.capture([QUESTION], sites, said).values[0].double()
    expected = (streams @ direction.double() / streams.norm(dim=-1)).reshape(-1, 3).flip(1)
    assert torch.allclose(seen.values[:, -3:].double(), expected, atol=1e-5)


def test_a_direction_that_is_ablated_is_nowhere(tiny: Mapping[str, dm.Session]) -> None:
    session = tiny["llama"]
    control = ablation(session)
    direction = control.parts[0].vectors[0]
    assert session.projections(QUESTION, direction).values.abs().max() > 0.01
    with session.controlled(control):
        assert session.projections(QUESTION, direction).values.abs().max() < 1e-5


def test_it_says_where_it_is_furthest(tiny: Mapping[str, dm.Session]) -> None:
    seen = tiny["llama"].projections(QUESTION, basis_of(tiny["llama"], 1)[0])
    layer, token = divmod(int(seen.values.abs().argmax()), len(seen.tokens))
    assert str(seen).endswith(f"{seen.values[layer, token]:+.2f} at layer {layer}, token {seen.tokens[token]!r}.")


def test_a_direction_of_another_size_is_told(tiny: Mapping[str, dm.Session]) -> None:
    with pytest.raises(DataError, match=r"shape \[7\]; the model's stream has 48 channels"):
        tiny["llama"].projections(QUESTION, torch.ones(7))
