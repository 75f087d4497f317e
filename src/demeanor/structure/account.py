"""What one block adds to the stream: the modules that write it, and the weights behind them, found and then checked.

What was found in one block is tried out in others that are built alike: looking takes gradients, and checking takes one pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..algebra.edits import ablate, edited
from ..errors import AccountingError
from .accounting import RESIDUAL_TOLERANCE, Sum, distinct_values, fit, summed, told
from .layout import Role, Writer, writer_edits
from .null_test import NOTHING, found_by_null_test
from .replay import Call, Replay, left_of, random_direction, without
from .writers import before_norm, mixes_tokens, weights_behind


class Account(NamedTuple):
    """What a block adds to the stream, its writers with names inside it.

    alpha: what it multiplies the stream with; None where its parts do not come in as a sum.
    residual: what the sum leaves unexplained, at most, relative to what is added to the stream.
    """

    writers: tuple[Writer, ...]
    alpha: float | None
    residual: float


def account(replay: Replay, layer: int) -> Account:
    """What is found in a block; its copy is edited afterwards. AccountingError where it cannot be found or does not hold."""
    out, calls = replay.run()
    found = _summed(replay, out.detach(), calls)
    writers = []
    for term, scale in zip(found.terms, found.scalars):
        raws, norm = before_norm(replay, calls, term)
        for number, raw in enumerate(raws):
            weights = weights_behind(replay.block.named_parameters(), _as_rows(replay, calls[raw].out), replay.name)
            if not weights:
                raise AccountingError(
                    f"{replay.name}: no weight was found behind the writer {raw} (what it writes may be scaled or convolved channel by channel); this model cannot be edited yet."
                )
            role: Role = "attn" if mixes_tokens(replay, calls, raw) else "mlp"
            shared = replace(norm, bias=None) if norm and number else norm  # what a norm adds comes in once
            writers.append(Writer(module=raw, layer=layer, role=role, scale=round(scale, 9), weights=tuple(weights), post_norm=shared))
    fault = _left_by_ablation(replay, writers, *_ablated(replay, writers))
    if fault is not None:
        raise AccountingError(f"{replay.name}{fault}; this model cannot be edited yet.")
    alpha = None if found.alpha != found.alpha else round(found.alpha, 9)
    return Account(tuple(writers), alpha, told(found.residual))


@torch.no_grad()
def like(other: Account, replay: Replay, layer: int) -> Account | None:
    """What was found in another block, built alike, checked in this one as it was there: by the sum, with scalars of its own, and by ablation.

    None where it does not hold, or did not come in as a sum; the copy is edited afterwards in any case.
    """
    if other.alpha is None or any(writer.post_norm and writer.post_norm.weight is None for writer in other.writers):
        return None  # a constant gain of a norm stands in none of what is checked
    with _reached(replay, other.writers) as unreached:
        r, out, calls = _ablated(replay, other.writers)
    if unreached:  # by any token, as an expert may be: looking tells, or asks for more tokens
        return None
    terms = dict.fromkeys(writer.contribution for writer in other.writers)
    if not all(term in calls for term in terms) or _left_by_ablation(replay, other.writers, r, out, calls) is not None:
        return None
    found, _ = summed(out, without(replay.stream, r), {term: calls[term].out for term in terms})
    if found is None or set(found.terms) != set(terms) or abs(found.alpha) <= 1e-3:
        return None
    scales = dict(zip(found.terms, found.scalars))
    writers = (replace(writer, layer=layer, scale=round(scales[writer.contribution], 9)) for writer in other.writers)
    return Account(tuple(writers), round(found.alpha, 9), told(found.residual))


@contextmanager
def _reached(replay: Replay, writers: Sequence[Writer]) -> Iterator[set[str]]:
    """The modules with weights of writers, less those that are given something to work on while the context lasts."""
    unreached = {weight.name.rpartition(".")[0] for writer in writers for weight in writer.weights}

    def given(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(isinstance(value, Tensor) and value.numel() for value in (*args, *kwargs.values())):
            unreached.discard(name)

    handles = [
        replay.block.get_submodule(name).register_forward_pre_hook(lambda _, *passed, name=name: given(name, *passed), with_kwargs=True) for name in unreached
    ]
    try:
        yield unreached
    finally:
        for handle in handles:
            handle.remove()


def _as_rows(replay: Replay, value: Tensor) -> Tensor:
    return value.reshape(-1, replay.d_model)


def _summed(replay: Replay, out: Tensor, calls: Mapping[str, Call]) -> Sum:
    """The fewest inner outputs that make up what the block adds: with scalars, or found by the null test (then alpha is NaN)."""
    single, best = out.numel() == replay.stream.shape[:2].numel() * replay.d_model, 1.0
    if single:
        found, best = summed(out, replay.stream, distinct_values(calls.values(), replay.stream))
        if found is not None and abs(found.alpha) > 1e-3:
            return found
    terms = found_by_null_test(replay, random_direction(replay.d_model, 2, out))
    if not terms:
        if single:
            _refuse_loose(replay, out, calls)
        explained = f"; scalars account for what it adds only up to {best:.1e}" if single else ""
        raise AccountingError(
            f"{replay.name} changes the stream itself channel by channel (a norm, a scale or a gate sits on it{explained}), so no direction can be kept out of it by weights; this model cannot be edited yet."
        )
    if single:
        values = [replay.stream, *(calls[name].out.reshape(out.shape) for name in terms)]
        scalars, _ = fit([value.detach() for value in values], out, out)
        update = out - scalars[0] * replay.stream
        missed = update - sum(scalar * value.detach() for scalar, value in zip(scalars[1:], values[1:]))
        residual = float(missed.norm() / update.norm())
        if residual <= RESIDUAL_TOLERANCE and abs(scalars[0]) > 1e-3:
            return Sum(terms, tuple(scalars[1:]), scalars[0], residual)
    return Sum(terms, (1.0,) * len(terms), float("nan"), 0.0)


@torch.no_grad()
def _refuse_loose(replay: Replay, out: Tensor, calls: Mapping[str, Call]) -> None:
    """AccountingError with the fact where it is a parameter outside of all that modules return that makes up the rest."""
    loose = {name: p.detach().expand(out.shape) for name, p in replay.block.named_parameters() if p.shape == (replay.d_model,)}
    for name, value in loose.items():
        values = {**distinct_values(calls.values(), replay.stream), name: value}
        found, _ = summed(out, replay.stream, values)
        if found is not None and name in found.terms:
            raise AccountingError(f"{replay.name} adds its parameter {name} to the stream outside of any module, where no edit at run time comes by; this model cannot be edited yet.")


@torch.no_grad()
def _ablated(replay: Replay, writers: Sequence[Writer]) -> tuple[Tensor, Tensor, dict[str, Call]]:
    """A random direction r [d_model], and what the block returns, and its modules, once r is out of the weights and of what comes in."""
    r = random_direction(replay.d_model, 2, replay.stream)
    for writer in writers:
        for name, axis, edit in writer_edits(writer, ablate(r[None]), replay.block.get_parameter):
            parameter = replay.block.get_parameter(name)
            parameter.data = edited(parameter, axis, edit)
    return r, *replay.run(r)


def _left_by_ablation(replay: Replay, writers: Sequence[Writer], r: Tensor, out: Tensor, calls: Mapping[str, Call]) -> str | None:
    """Where something of r is left that is to be in no contribution and not in what the block returns, in words; None where nothing is."""
    for writer in writers:
        left = left_of(r, calls[writer.contribution].out)
        if left > 1e-6:
            return f".{writer.module}: {left:.1e} of an ablated direction is left, so not all of its weights were found"
    left = left_of(r, out)
    return f": {left:.1e} of an ablated direction is left in what it returns, so something else writes to the stream" if left > NOTHING else None


def build_of(block: nn.Module) -> str:
    """What blocks that are built alike have in common: classes, settings other than whole numbers (a layer's is one), names and shapes of weights."""
    told = []
    for name, module in block.named_modules():
        settings = {key: value for key, value in vars(module).items() if isinstance(value, bool | float | str)}
        shapes = {key: tuple(weight.shape) for key, weight in module.named_parameters(recurse=False)}
        told.append((name, f"{type(module).__module__}.{type(module).__qualname__}", settings, shapes))
    return repr(told)
