"""Proving what writes to a model's residual stream.

`prove(model)` runs a few tokens through the model and finds, in float64 and one block at a time, which of its modules write to the stream
(algorithms.md, section 1): by the accounting `h_out = alpha h_in + sum beta_i w_i` or, where no scalars account for a block, by the
null test, which holds whatever mixes the stream. The weights behind each writer w_i, and which of their axes is d_model, are found by
gradient and then checked: with a random direction ablated in a copy of the block, nothing of it may be in what the block returns.
Nothing is concluded from a name. A model for which any step fails is refused with an AccountingError that names the place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..algebra.edits import ablate, edited
from ..errors import AccountingError
from ..progress import track
from .accounting import RESIDUAL_TOLERANCE, Sum, distinct_values, fit, summed
from .blocks import watched_blocks
from .embeddings import embedding_writers
from .layout import Layout, Role, Writer, writer_edits
from .null_test import NOTHING, found_by_null_test
from .replay import Call, Replay, left_of, random_direction
from .writers import Unreached, before_norm, mixes_tokens, weights_behind

TOKENS = (9, 64, 256)  # of each of two rows; more where experts are left that no token reaches


def prove(model: Any) -> Layout:
    """The layout of a loaded causal language model, or an AccountingError naming what could not be proven."""
    experts = model.get_experts_implementation()
    model.set_experts_implementation("eager")  # the fast ways of running experts know no float64
    try:
        for count in TOKENS[:-1]:
            try:
                return _prove(model, count)
            except Unreached:
                continue
        return _prove(model, TOKENS[-1])
    finally:
        model.set_experts_implementation(experts)


def _prove(model: Any, count: int) -> Layout:
    inputs = {"input_ids": _tokens(model, count)}
    blocks = watched_blocks(model, inputs)
    d_model = _width(model, blocks.calls[0].args[0])
    with torch.no_grad():
        writers = embedding_writers(model, blocks.modules, d_model, inputs)
    quantization = getattr(model, "hf_quantizer", None) and model.config.quantization_config
    accounts = []
    for layer, (block, call) in enumerate(track(zip(blocks.modules, blocks.calls), "Proving the layout", len(blocks.calls))):
        accounts.append(_account(Replay(block, call, d_model, quantization), layer))
    alphas = tuple(account.alpha for account in accounts)
    return Layout(
        model_type=model.config.get_text_config().model_type,
        d_model=d_model,
        blocks=tuple(call.name for call in blocks.calls),
        writers=(*writers, *(writer for account in accounts for writer in account.writers)),
        tied=_tied(model),
        worst_residual=max(account.residual for account in accounts),
        alphas=() if all(alpha is not None and abs(alpha - 1) < RESIDUAL_TOLERANCE for alpha in alphas) else alphas,
        skipped=blocks.skipped,
        copies=blocks.calls[0].out[0, 0].numel() // d_model,
        one_name_each=_one_name_each(model),
    )


def _tokens(model: Any, count: int) -> Tensor:
    """Random token ids [2, count] for the proof."""
    vocab = model.config.get_text_config().vocab_size
    return torch.randint(vocab, (2, count), generator=torch.Generator().manual_seed(0)).to(next(model.parameters()).device)


def _width(model: Any, stream: Tensor) -> int:
    """d_model; the last axis of a stream may hold several copies of it side by side."""
    width = getattr(model.config.get_text_config(), "hidden_size", None)
    return width if isinstance(width, int) and width > 0 and stream.shape[-1] % width == 0 else stream.shape[-1]


class _Account(NamedTuple):
    """What a block adds to the stream. alpha: what it multiplies the stream with; None where its parts do not come in as a sum."""

    writers: list[Writer]
    alpha: float | None
    residual: float


def _account(replay: Replay, layer: int) -> _Account:
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
    _check_by_ablation(replay, writers)
    alpha = None if found.alpha != found.alpha else found.alpha
    return _Account([_with_prefix(writer, replay.name) for writer in writers], alpha, found.residual)


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
def _check_by_ablation(replay: Replay, writers: Sequence[Writer]) -> None:
    """Ablate a random direction in the copy's weights: nothing of it may be left in any contribution, or in what the block returns."""
    r = random_direction(replay.d_model, 2, replay.stream)
    for writer in writers:
        for name, axis, edit in writer_edits(writer, ablate(r[None]), replay.block.get_parameter):
            parameter = replay.block.get_parameter(name)
            parameter.copy_(edited(parameter, axis, edit))
    out, calls = replay.run(r)
    for writer in writers:
        left = left_of(r, calls[writer.contribution].out)
        if left > 1e-6:
            raise AccountingError(
                f"{replay.name}.{writer.module}: {left:.1e} of an ablated direction is left, so not all of its weights were found; this model cannot be edited yet."
            )
    if left_of(r, out) > NOTHING:
        raise AccountingError(
            f"{replay.name}: {left_of(r, out):.1e} of an ablated direction is left in what it returns, so something else writes to the stream; this model cannot be edited yet."
        )


def _with_prefix(writer: Writer, prefix: str) -> Writer:
    """Names inside the block made names inside the model."""
    norm = writer.post_norm
    if norm:
        weight, bias = (name and f"{prefix}.{name}" for name in (norm.weight, norm.bias))
        norm = replace(norm, module=f"{prefix}.{norm.module}", weight=weight, bias=bias)
    weights = tuple(replace(weight, name=f"{prefix}.{weight.name}") for weight in writer.weights)
    return replace(writer, module=f"{prefix}.{writer.module}", weights=weights, post_norm=norm)


def _tied(model: Any) -> tuple[str, str] | None:
    """The names of an output head that is the embedding, and of that embedding."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or getattr(head, "weight", None) is not embedding.weight:
        return None
    names = {module: name for name, module in model.named_modules()}
    return f"{names[embedding]}.weight", f"{names[head]}.weight"


def _one_name_each(model: Any) -> bool:
    """Whether no parameter but an embedding that is the head too has several names."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    several = set(names) - {name for name, _ in model.named_parameters()}
    return several <= set(_tied(model) or ())
