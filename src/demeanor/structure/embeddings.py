"""What comes into the first block, and the weights it is made of: rows by token, positions, types, a projection, a norm behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..algebra.edits import ablate, edited
from ..errors import AccountingError
from .accounting import RESIDUAL_TOLERANCE, Sum, distinct_values, fit, summed
from .calls import on_input, returned
from .layout import PostNorm, Weight, Writer
from .replay import Call, left_of, passes_through, random_direction
from .writers import described_norm, is_norm, weights_behind


class Before(NamedTuple):
    """What ran before the first block: the calls of modules, and what came into that block."""

    calls: dict[str, Call]
    stream: Tensor


class _Begun(Exception):
    """The first block begins."""


def embedding_writers(model: Any, blocks: Sequence[nn.Module], d_model: int, inputs: dict[str, Any]) -> list[Writer]:
    """Everything that writes the stream before the first block. AccountingError where it is not all found."""
    before = _before(model, blocks, d_model, inputs)
    stream = _one_copy(before.stream, d_model)
    values = {name: _expanded(call.out, stream) for name, call in before.calls.items()}
    calls = {name: replace(before.calls[name], out=value) for name, value in values.items() if value is not None}
    # One rounding of the product is all that separates the two sides, so the dtype sets the tolerance.
    tolerance = max(RESIDUAL_TOLERANCE, 4 * torch.finfo(stream.dtype).eps)
    doubles = {name: value.double() for name, value in distinct_values(calls.values(), None).items()}
    found, best = summed(stream.double(), None, doubles, tolerance)
    if found is None:
        raise AccountingError(
            f"What comes into the first block is made of the outputs of the modules before it only up to {best:.1e}: a part of it (positions, say) lies in none of its weights, or is mixed by more than numbers; this model cannot be edited yet."
        )
    return list(_writers(model, blocks, d_model, inputs, calls, found, tolerance))


def _writers(
    model: Any, blocks: Sequence[nn.Module], d_model: int, inputs: dict[str, Any], calls: Mapping[str, Call], found: Sum, tolerance: float
) -> Iterator[Writer]:
    for term, scale in zip(found.terms, found.scalars):
        raws, norm = _before_norm(model, calls, term, d_model, tolerance)
        for number, raw in enumerate(raws):
            weights = _plain_rows(model, calls[raw], tolerance) or _by_gradient(model, blocks, d_model, inputs, raw)
            if not weights:
                raise AccountingError(f"{raw} adds to the stream what lies in no weight (positions that are computed, say); this model cannot be edited yet.")
            shared = replace(norm, bias=None) if norm and number else norm  # what a norm adds comes in once
            yield Writer(module=raw, layer=-1, role="embed", scale=round(scale, 6), weights=tuple(weights), post_norm=shared)


def _before(model: Any, blocks: Sequence[nn.Module], d_model: int, inputs: dict[str, Any]) -> Before:
    """A pass that ends where the first block begins."""
    inner = {module for block in blocks for module in block.modules()}
    above = {module for module in model.modules() if any(block in set(module.modules()) for block in blocks[:1])}
    calls: dict[str, Call] = {}
    came: list[Tensor] = []

    def record(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        value = returned(output)
        if isinstance(value, Tensor) and value.is_floating_point() and value.shape[-1:] == (d_model,) and not passes_through(args, value):
            kept = tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)
            calls[name] = Call(name, kept, kwargs, value.clone())

    def begin(value: Tensor) -> None:
        came.append(value)
        raise _Begun

    handles = [on_input(blocks[0], begin)]
    for name, module in model.named_modules():
        if module not in inner and module not in above:
            handles.append(module.register_forward_hook(lambda *passed, name=name: record(name, *passed), with_kwargs=True))
    try:
        model(**inputs)
    except _Begun:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return Before(calls, came[0])


def _one_copy(stream: Tensor, d_model: int) -> Tensor:
    """The stream [row, token, d_model]; of several copies the first, where they begin alike."""
    copies = stream.reshape(*stream.shape[:2], -1, d_model)
    if not torch.equal(copies, copies[:, :, :1].expand_as(copies)):
        raise AccountingError("The stream comes into the first block in copies that differ from each other; this model cannot be edited yet.")
    return copies[:, :, 0]


def _expanded(value: Tensor, stream: Tensor) -> Tensor | None:
    """A value as one for every token of the stream; None where it is no such value."""
    try:
        return value.reshape(stream.shape) if value.numel() == stream.numel() else value.expand(stream.shape)
    except RuntimeError:
        return None


def _before_norm(model: nn.Module, calls: Mapping[str, Call], term: str, d_model: int, tolerance: float) -> tuple[tuple[str, ...], PostNorm | None]:
    module, call = model.get_submodule(term), calls[term]
    if isinstance(module, nn.Embedding) or not call.args or not isinstance(call.args[0], Tensor) or not is_norm(module, call):
        return (term,), None
    norm, _ = described_norm(module, term, "", d_model, call.args[0])
    earlier = [calls[name] for name in list(calls)[: list(calls).index(term)]]
    values = {name: value.double() for name, value in distinct_values(earlier, None).items()}
    found, best = summed(call.args[0].double(), None, values, tolerance)
    if found is None:
        raise AccountingError(f"What comes into the norm {term} is made of embeddings only up to {best:.1e}; this model cannot be edited yet.")
    return found.terms, norm


def _plain_rows(model: nn.Module, call: Call, tolerance: float) -> list[Weight]:
    """The weight of an embedding that returns its rows by token; empty where it does something else."""
    module, ids = model.get_submodule(call.name), call.args[0] if call.args else None
    if not isinstance(module, nn.Embedding) or not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dtype == torch.bool:
        return []
    if ids.shape != call.out.shape[:-1] or not 0 <= int(ids.min()) <= int(ids.max()) < len(module.weight):
        return []
    rows = module.weight.detach()[ids].double()
    _, missed = fit([rows], call.out.double(), call.out.double())
    return [] if missed > tolerance else [Weight(f"{call.name}.weight", 1, tuple(module.weight.shape))]


def _by_gradient(model: Any, blocks: Sequence[nn.Module], d_model: int, inputs: dict[str, Any], raw: str) -> list[Weight]:
    """The weights behind what a module before the blocks returns, by gradient; tried out by taking a direction out of them."""
    module = model.get_submodule(raw)
    own = [(f"{raw}.{name}", parameter) for name, parameter in module.named_parameters() if parameter.is_floating_point()]
    if not own:
        return []
    free = [parameter.requires_grad for _, parameter in own]
    try:
        for _, parameter in own:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            out = _before(model, blocks, d_model, inputs).calls[raw].out
            weights = weights_behind(own, out, raw, max(1e-5, 16 * torch.finfo(out.dtype).eps))
    finally:
        for (_, parameter), was in zip(own, free):
            parameter.requires_grad_(was)
    _refuse_rest(model, blocks, d_model, inputs, raw, weights)
    return weights


@torch.no_grad()
def _refuse_rest(model: Any, blocks: Sequence[nn.Module], d_model: int, inputs: dict[str, Any], raw: str, weights: Sequence[Weight]) -> None:
    """AccountingError where a direction that is taken out of these weights is left in what the module returns."""
    kept = {weight.name: model.get_parameter(weight.name).detach().clone() for weight in weights}
    try:
        for weight in weights:
            parameter = model.get_parameter(weight.name)
            r = random_direction(d_model, 2, parameter)
            parameter.copy_(edited(parameter.double(), weight.axis, ablate(r[None])))
        out = _before(model, blocks, d_model, inputs).calls[raw].out.double()
    finally:
        for name, values in kept.items():
            model.get_parameter(name).copy_(values)
    left = left_of(random_direction(d_model, 2, out), out[out.norm(dim=-1) > 0])
    if weights and left > max(1e-4, 16 * torch.finfo(next(iter(kept.values())).dtype).eps):
        raise AccountingError(f"{raw} adds to the stream what lies in no weight (positions that are computed, say): {left:.1e} of a direction is left; this model cannot be edited yet.")
