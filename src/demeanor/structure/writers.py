"""What lies behind the values that are added to a stream: the norm in between, the weights, and whether tokens are mixed there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ..algebra.bases import unit
from ..algebra.norms import measured_gain, through_post_norm
from ..errors import AccountingError
from .accounting import distinct_values, same_values, summed
from .calls import returned
from .layout import PostNorm, Weight
from .null_test import found_by_null_test
from .replay import Call, Replay, each_tensor, random_direction

SAMPLE = 16  # rows of a gradient that are looked at first
AT_ONCE = 1 << 25  # numbers whose gradients are held together
GRADIENT_TOLERANCE = 1e-6  # of a gradient being along v on one axis, float64 with float32 norms inside


class Unreached(AccountingError):
    """No token of the proof reached a weight that is like those of a writer: more tokens may."""


def before_norm(replay: Replay, calls: Mapping[str, Call], term: str) -> tuple[tuple[str, ...], PostNorm | None]:
    """The modules that write before a norm, and that norm; the term itself and None where no norm follows."""
    module, call = replay.block.get_submodule(term), calls[term]
    if not is_norm(module, call):
        return (term,), None
    norm, gain = described_norm(module, term, replay.name, replay.d_model, call.args[0])
    raws = _summed_before(replay, calls, term, gain, norm.centred)
    if not raws or any(is_norm(replay.block.get_submodule(raw), calls[raw]) for raw in raws):
        raise AccountingError(
            f"{replay.name}: a norm ({term}) sits on the stream itself and changes all that was written before it, so no direction can be kept out of it by weights; this model cannot be edited yet."
        )
    return raws, norm


def _summed_before(replay: Replay, calls: Mapping[str, Call], term: str, gain: Tensor, centred: bool) -> tuple[str, ...]:
    """The modules whose outputs make up what a norm is given; none where the stream is in it too."""
    given, before = calls[term].args[0], [calls[name] for name in list(calls)[: list(calls).index(term)]]
    if torch.equal(given, replay.stream):
        return ()
    same = next((call.name for call in before if same_values(call.out, given)), None)
    if same is not None:
        return (same,)
    found, _ = summed(given, None, distinct_values(before, replay.stream))
    if found is not None:
        return found.terms
    r = random_direction(replay.d_model, 2, given)
    return found_by_null_test(replay, r, term, through_post_norm(r[None].to(gain), gain, centred)[0]) or ()


def is_norm(module: nn.Module, call: Call) -> bool:
    """Whether a module returns the same for what it was given and for twice that."""
    given = call.args
    if not given or not isinstance(given[0], Tensor) or given[0].shape != call.out.shape or not given[0].is_floating_point():
        return False
    with torch.no_grad():
        x = unit(given[0]) * given[0].shape[-1] ** 0.5  # far above any epsilon
        try:
            once, doubled = (returned(module(factor * x, *given[1:], **call.kwargs)) for factor in (1, 2))
        except (RuntimeError, TypeError, ValueError, LookupError):  # it takes more than one such value
            return False
    return bool(once.norm() > 0) and float((doubled - once).norm() / once.norm()) <= 1e-3  # a norm forgets scale


def described_norm(module: nn.Module, name: str, place: str, d_model: int, like: Tensor) -> tuple[PostNorm, Tensor]:
    """A norm as it stands behind writers, and its gain [d_model]; `place` is the module that it is in, if any."""
    where = ".".join(part for part in (place, name) if part)
    with torch.no_grad():
        gain, bias, centred = measured_gain(module, d_model, like)
    own = {key: p.detach().double() for key, p in module.named_parameters() if p.shape == (d_model,)}
    shifts = {key: gain - value for key, value in own.items()}
    weight = next((key for key, shift in shifts.items() if float(shift.std()) < 1e-4 * float(gain.abs().mean())), None)
    offset = float((shifts[weight] if weight else gain).mean())
    bias_name = next((key for key, value in own.items() if key != weight and torch.allclose(value, bias, atol=1e-5)), None)
    if (weight is None and float(gain.std()) > 1e-4) or (bias_name is None and float(bias.abs().max()) > 1e-5):
        raise AccountingError(f"{where}: the norm's gain could not be read from its weights; this model cannot be edited yet.")
    return PostNorm(name, weight and f"{name}.{weight}", round(offset, 4), bias_name and f"{name}.{bias_name}", centred), gain


def weights_behind(
    parameters: Iterable[tuple[str, nn.Parameter]], out: Tensor, place: str, tolerance: float = GRADIENT_TOLERANCE
) -> list[Weight]:
    """Parameters whose gradient of v.out is along v on exactly one axis: those that write d_model."""
    d_model = out.shape[-1]
    v = torch.randn(d_model, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out)
    names, values = zip(*parameters)
    weights, unused = [], []
    for name, gradient, value in zip(names, _gradients((out * v).sum(), values), values):
        if gradient is None or not gradient.any():
            unused += [(_pattern(name), tuple(value.shape), name)]
            continue
        axes = [axis for axis in range(gradient.dim()) if gradient.shape[axis] == d_model and _along(gradient, axis, v, tolerance)]
        if len(axes) > 1:
            raise AccountingError(f"{place}.{name} could write the stream on axes {axes}; this model cannot be edited yet.")
        weights += [Weight(name, axis, tuple(gradient.shape)) for axis in axes]
    found = {(_pattern(weight.name), weight.shape) for weight in weights if _pattern(weight.name) != weight.name}
    unreached = next((name for pattern, shape, name in unused if (pattern, shape) in found), None)
    if unreached is not None:
        raise Unreached(f"{place}.{unreached} was reached by no token, so what it writes is not known; this model cannot be edited yet.")
    return weights


def _gradients(value: Tensor, weights: tuple[nn.Parameter, ...]) -> Iterator[Tensor | None]:
    """The gradient of a number with respect to each weight; None where it does not depend on it. Of large blocks one is held at a time."""
    if sum(weight.numel() for weight in weights) <= AT_ONCE:
        yield from torch.autograd.grad(value, weights, allow_unused=True, retain_graph=True)
        return
    for weight in weights:
        (gradient,) = torch.autograd.grad(value, (weight,), allow_unused=True, retain_graph=True)
        yield gradient


def _pattern(name: str) -> str:
    """A name without its numbers: the same for all experts that are modules of their own."""
    return re.sub(r"\.\d+\.", ".*.", name)


def _along(gradient: Tensor, axis: int, v: Tensor, tolerance: float) -> bool:
    rows, direction = gradient.movedim(axis, -1).reshape(-1, v.numel()), unit(v)
    if len(rows) > SAMPLE:  # most weights are told from writers by a few of their rows
        some = rows[:: len(rows) // SAMPLE]
        if (some - (some @ direction)[:, None] * direction).norm() >= max(tolerance, 1e-3) * some.norm() > 0:
            return False
    left = rows - (rows @ direction)[:, None] * direction
    return bool(left.norm() < tolerance * rows.norm())


def mixes_tokens(replay: Replay, calls: Mapping[str, Call], raw: str) -> bool:
    """Whether the part of the block that holds a writer lets a token see another before it: attention does, an MLP does not.

    The first token is changed at random: what is added to every channel alike would be taken out by a LayerNorm, and a short convolution
    reaches no further than the next tokens.
    """
    parts = [raw[: match.start()] for match in re.finditer(r"\.|$", raw)]
    part = next((name for name in parts if name in calls), None)
    if part is None:
        raise AccountingError(f"{replay.name}: {raw} returns no output of the stream's shape; this model cannot be edited yet.")
    shape = replay.stream.shape[:2]
    rng = torch.Generator().manual_seed(5)

    def bumped(value: Tensor) -> Tensor:
        if not value.is_floating_point() or value.shape[-1] % replay.d_model or value.numel() % (shape[0] * shape[1]) or value.dim() < 2:
            return value
        rows = value.clone().reshape(*shape, -1)
        rows[:, 0] += torch.randn(rows.shape[-1], generator=rng, dtype=torch.float64).to(rows)
        return rows.reshape(value.shape)

    args, kwargs = each_tensor(calls[part].args, bumped), each_tensor(calls[part].kwargs, bumped)
    with torch.no_grad():
        out = returned(replay.block.get_submodule(part)(*args, **kwargs)).reshape(*shape, -1)
    return bool((out - calls[part].out.reshape(*shape, -1))[:, 1:].abs().max() > 1e-12)


