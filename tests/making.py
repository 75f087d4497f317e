"""Small things tests make: directions and controls that were not found but chosen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import demeanor as dm
from demeanor.algebra.bases import orthonormal
from demeanor.algebra.moments import Moments
from demeanor.controls import Control, Gate, Part, Scope

PROMPTS = [
    "how do i crack an egg ?",
    "what is 3 plus 4 ?",
    "please tell me how to wash a friend's bike . it is urgent , is it not ?",
    "hello",
]


def basis_of(session: dm.Session, rank: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return orthonormal(torch.randn(rank, session.layout.d_model, generator=rng, dtype=torch.float64)).float()


def ablation(session: dm.Session, rank: int = 1, strength: float = 1.0, seed: int = 0) -> Control:
    part = Part(kind="ablate", vectors=basis_of(session, rank, seed), dose=strength, scope=Scope())
    return Control(parts=(part,), layout=session.layout, model_name=session.name, made_from={"behaviour": "a test"})


def a_direction(session: dm.Session, site: dm.Site, gap: float = 1.0, seed: int = 0) -> dm.Direction:
    """A direction at a site whose class means lie `gap` apart along a random unit vector."""
    basis = basis_of(session, 1, seed)
    zero = torch.zeros(session.layout.d_model, dtype=torch.float64)
    shows, lacks = Moments(4, gap * basis[0].double(), zero), Moments(4, zero, zero)
    return dm.Direction(
        basis=basis,
        site=site,
        estimator="mean_difference",
        shows=shows,
        lacks=lacks,
        separation=1.0,
        auroc=1.0,
        split_half_cosine=1.0,
        p=0.001,
        candidates=(),
        layout=session.layout,
        model_name=session.name,
        behaviour="a test",
    )


def gate_on_length(session: dm.Session, prompts: list[str], fires: list[bool]) -> Gate:
    """A gate that fires on exactly the given prompts: a probe fitted to tell them from the others."""
    from demeanor.algebra.directions import logistic

    site = dm.Site(0)
    values = session.capture(prompts, [site]).at(site)
    weight, bias = logistic(values, torch.tensor(fires), penalty=1e-3)
    gate = Gate(
        site=site, weights=weight.float()[None], biases=bias.float()[None], auroc=1.0, hits=1.0, false_positives=0.0, against=("guard",)
    )
    assert gate.fires(values).tolist() == fires
    return gate


def assert_logits(model: Any, session: dm.Session, wanted: Tensor) -> None:
    """A model that has nothing of ours gives these logits [prompt, vocab] to PROMPTS, up to rounding."""
    for row, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            got = model(torch.tensor([session.encode(prompt)])).logits[0, -1]
        assert (got - wanted[row]).abs().max() < 1e-4 * wanted.std()


def assert_gone(session: dm.Session, control: Control) -> None:
    """Nothing of what a control ablates is in the stream of a model of three layers."""
    values = session.capture(PROMPTS, [dm.Site(0, "embed"), *(dm.Site(layer) for layer in range(3))]).values
    assert ((values @ control.parts[0].vectors.T).abs().amax(-1) / values.norm(dim=-1)).max() < 1e-5
