"""What ablation would gain, against replies that were scored with a little of the direction taken out."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import demeanor as dm
from demeanor.models.attribution import ablation_gain
from making import PROMPTS, ablation, basis_of

ANSWERS = ("3 plus 4 is 7 .", "no .", "first get the lamp", "hello")
LITTLE = 0.004


def without(share: float, vector: Tensor, module: object, inputs: object, output: Any) -> Any:
    if isinstance(output, tuple):
        return (without(share, vector, module, inputs, output[0]), *output[1:])
    return output - share * (output @ vector)[..., None] * vector


def scored(session: dm.Session, replies: list[list[int]], share: float, vector: Tensor) -> float:
    """Mean log-probability per reply token with a share of the vector taken from everything that is written to the stream."""
    with ExitStack() as stack:
        for writer in session.layout.writers:
            hook = session.model.get_submodule(writer.contribution).register_forward_hook(partial(without, share, vector))
            stack.callback(hook.remove)
        return float(torch.stack([each.double().mean() for each in session.reply_log_likelihoods(PROMPTS, replies)]).mean())


def test_the_gain_is_the_slope_of_the_likelihood(session: dm.Session) -> None:
    replies = [session.encode_reply(text) for text in ANSWERS]
    form = ablation_gain(session, PROMPTS, replies)
    assert torch.equal(form, form.T)
    for seed in range(2):
        vector = basis_of(session, 1, seed)[0]
        slope = (scored(session, replies, LITTLE, vector) - scored(session, replies, -LITTLE, vector)) / (2 * LITTLE)
        assert float(vector.double() @ form @ vector.double()) == pytest.approx(slope, rel=0.05, abs=2e-3)
    assert not any(parameter.requires_grad for parameter in session.model.parameters())


def test_a_control_in_force_acts_first(organism: dm.Session) -> None:
    replies = [organism.encode_reply(text) for text in ANSWERS]
    untouched = ablation_gain(organism, PROMPTS, replies)
    with organism.controlled(ablation(organism)):
        form = ablation_gain(organism, PROMPTS, replies)
    vector = basis_of(organism, 1)[0].double()
    assert abs(float(vector @ untouched @ vector)) > 1e-3
    assert float(vector @ form @ vector) == pytest.approx(0, abs=1e-6)  # nothing of it is left to be taken out
