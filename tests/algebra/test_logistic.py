"""The logistic probe: at the optimum of its balanced, penalised loss, and what that is for."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from demeanor.algebra.directions import logistic

SETTINGS = settings(derandomize=True, deadline=None, max_examples=25)
SEEDS = st.integers(0, 2**32 - 1)


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_line_searches(values: Tensor, labels: Tensor, penalty: float) -> tuple[Tensor, float]:
    """The same optimum by L-BFGS on the gradient of the loss, on standardised channels, each class weighing one half."""
    spread, centre = values.std(0), values.mean(0)
    x, y = (values - centre) / spread, labels.double()
    share = torch.where(labels, 0.5 / y.sum(), 0.5 / (1 - y).sum())
    weight = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-9, tolerance_change=1e-14)

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = torch.nn.functional.binary_cross_entropy_with_logits(x @ weight + bias, y, reduction="none")
        loss = (share * losses).sum() + penalty * weight.square().sum() / (2 * len(x))
        loss.backward()
        return loss

    optimizer.step(closure)
    raw = weight.detach() / spread
    return raw, float(bias.detach() - raw @ centre)


@SETTINGS
@given(
    seed=SEEDS,
    n=st.integers(20, 60),
    d=st.integers(1, 8),
    one_in=st.integers(2, 5),
    gap=st.sampled_from([0.0, 0.5, 2.0]),
    penalty=st.sampled_from([0.3, 1.0, 10.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_logistic_is_at_the_optimum(seed: int, n: int, d: int, one_in: int, gap: float, penalty: float, dtype: torch.dtype) -> None:
    """Same logits as another method's, and no gradient left, for channels of unlike scale and offset and unlike classes."""
    labels = torch.arange(n) % one_in == 0
    values = gaussian(seed, n, d)
    values[labels] += gap
    values = (values * torch.logspace(-2, 2, d, dtype=torch.float64) + 3).to(dtype)
    weight, bias = logistic(values, labels, penalty)
    exact = values.double()
    expected_weight, expected_bias = by_line_searches(exact, labels, penalty)
    torch.testing.assert_close(exact @ weight + bias, exact @ expected_weight + expected_bias, rtol=0, atol=1e-3)

    standard, on_standard = (exact - exact.mean(0)) / exact.std(0), weight * exact.std(0)
    share = torch.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum())
    left = share * (torch.sigmoid(exact @ weight + bias) - labels.double())
    assert abs(float(left.sum())) < 1e-7
    assert float((standard.T @ left + penalty * on_standard / n).abs().max()) < 1e-7


def test_logistic_separates_held_out_rows() -> None:
    """Positive logits on the class that is labelled, also under no_grad and whatever the raw scale."""
    direction = gaussian(9, 30)
    labels = torch.arange(80) < 40
    train, held_out = (gaussian(seed, 80, 30) + labels[:, None] * direction for seed in (0, 1))
    for scale in (1.0, 1e-3, 1e3):
        with torch.no_grad():
            weight, bias = logistic(scale * train, labels)
        assert not weight.requires_grad
        assert not bias.requires_grad
        right = ((scale * held_out) @ weight + bias > 0) == labels
        assert float(right.double().mean()) > 0.95


def test_logistic_decision_does_not_follow_the_class_sizes() -> None:
    """Five copies of one class move the decision little, where unbalanced classes would move it by log 5."""
    labels = torch.arange(120) < 60
    values = gaussian(0, 120, 6)
    values[labels] += 0.7
    many = torch.cat([values[labels]] + 5 * [values[~labels]])
    weight, bias = logistic(values, labels)
    many_weight, many_bias = logistic(many, torch.arange(len(many)) < 60)
    before, after = values @ weight + bias, values @ many_weight + many_bias
    assert float((before - after).abs().mean()) < 0.1 * math.log(5)
    assert float(((before > 0) == (after > 0)).double().mean()) > 0.97


def test_logistic_penalty_shrinks_the_weight() -> None:
    """Classes that do not overlap still get a finite probe, weaker under a larger penalty."""
    labels = torch.arange(30) < 15
    values = gaussian(0, 30, 4) + 6.0 * labels[:, None]
    lengths = [float(logistic(values, labels, penalty)[0].norm()) for penalty in (0.1, 1.0, 10.0)]
    assert math.inf > lengths[0] > lengths[1] > lengths[2] > 0


def test_logistic_ignores_a_channel_that_never_moves() -> None:
    """A dead channel gets no weight and leaves the logits as they were without it."""
    labels = torch.arange(40) < 20
    values = gaussian(0, 40, 3) + labels[:, None]
    weight, bias = logistic(values, labels)
    with_dead, dead_bias = logistic(torch.cat([values, torch.full((40, 1), 7.0, dtype=torch.float64)], 1), labels)
    assert abs(float(with_dead[-1])) < 1e-6
    torch.testing.assert_close(values @ with_dead[:-1] + 7 * with_dead[-1] + dead_bias, values @ weight + bias, rtol=0, atol=1e-6)
