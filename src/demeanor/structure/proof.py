"""Proving what writes to a model's residual stream.

`prove(model)` runs a few tokens through the model and finds, in float64 and one block at a time, which of its modules write to the stream
(algorithms.md, section 1): by the accounting `h_out = alpha h_in + sum beta_i w_i` or, where no scalars account for a block, by the
null test, which holds whatever mixes the stream. The weights behind each writer w_i, and which of their axes is d_model, are found by
gradient and then checked: with a random direction ablated in a copy of the block, nothing of it may be in what the block returns.
Of blocks that are built alike one is searched, and what was found there is checked in each of the others, if tokens reach all of it.
Nothing is concluded from a name. A model for which any step fails is refused with an AccountingError that names the place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..progress import track
from .account import Account, account, build_of, like
from .accounting import RESIDUAL_TOLERANCE
from .blocks import watched_blocks
from .embeddings import embedding_writers
from .layout import Layout, Writer
from .replay import Replay
from .writers import Unreached

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
    inputs = {"input_ids": tokens(model, count).to(next(model.parameters()).device)}
    blocks = watched_blocks(model, inputs)
    d_model = width(model, blocks.calls[0].args[0])
    with torch.no_grad():
        writers = embedding_writers(model, blocks.modules, d_model, inputs)
    quantization = getattr(model, "hf_quantizer", None) and model.config.quantization_config
    accounts: list[Account] = []
    built: dict[str, Account] = {}
    for layer, (block, call) in enumerate(track(zip(blocks.modules, blocks.calls), "Proving the layout", len(blocks.calls))):
        build = build_of(block)
        found = like(built[build], Replay(block, call, d_model, quantization), layer) if build in built else None
        accounts.append(found or account(Replay(block, call, d_model, quantization), layer))
        built.setdefault(build, accounts[-1])
    names = tuple(call.name for call in blocks.calls)
    copies = blocks.calls[0].out[0, 0].numel() // d_model
    return layout_of(model, d_model, writers, dict(zip(names, accounts)), blocks.skipped, copies, tied_names(model), one_name_each(model))


def layout_of(
    model: Any, d_model: int, embedding: Sequence[Writer], accounts: Mapping[str, Account], skipped: tuple[str, ...], copies: int,
    tied: tuple[str, str] | None, one_name: bool,
) -> Layout:  # fmt: skip
    """The layout that the writers before the blocks and what was found in every block, by its name, make up."""
    alphas = tuple(found.alpha for found in accounts.values())
    return Layout(
        model_type=model.config.get_text_config().model_type,
        d_model=d_model,
        blocks=tuple(accounts),
        writers=(*embedding, *(_with_prefix(writer, name) for name, found in accounts.items() for writer in found.writers)),
        tied=tied,
        worst_residual=max(found.residual for found in accounts.values()),
        alphas=() if all(alpha is not None and abs(alpha - 1) < RESIDUAL_TOLERANCE for alpha in alphas) else alphas,
        skipped=skipped,
        copies=copies,
        one_name_each=one_name,
    )


def tokens(model: Any, count: int) -> Tensor:
    """Random token ids [2, count] for the proof, on the CPU."""
    vocab = model.config.get_text_config().vocab_size
    return torch.randint(vocab, (2, count), generator=torch.Generator().manual_seed(0))


def width(model: Any, stream: Tensor) -> int:
    """d_model; the last axis of a stream may hold several copies of it side by side."""
    width = getattr(model.config.get_text_config(), "hidden_size", None)
    return width if isinstance(width, int) and width > 0 and stream.shape[-1] % width == 0 else stream.shape[-1]


def _with_prefix(writer: Writer, prefix: str) -> Writer:
    """Names inside the block made names inside the model."""
    norm = writer.post_norm
    if norm:
        weight, bias = (name and f"{prefix}.{name}" for name in (norm.weight, norm.bias))
        norm = replace(norm, module=f"{prefix}.{norm.module}", weight=weight, bias=bias)
    weights = tuple(replace(weight, name=f"{prefix}.{weight.name}") for weight in writer.weights)
    return replace(writer, module=f"{prefix}.{writer.module}", weights=weights, post_norm=norm)


def tied_names(model: Any) -> tuple[str, str] | None:
    """The names of an output head that is the embedding, and of that embedding."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or getattr(head, "weight", None) is not embedding.weight:
        return None
    names = {module: name for name, module in model.named_modules()}
    return f"{names[embedding]}.weight", f"{names[head]}.weight"


def one_name_each(model: Any) -> bool:
    """Whether no parameter but an embedding that is the head too has several names."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    several = set(names) - {name for name, _ in model.named_parameters()}
    return several <= set(tied_names(model) or ())
