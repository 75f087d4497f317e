"""The blocks of a model and what each of them received and returned in one pass over text. No name tells them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import AccountingError
from .calls import STREAM, returned
from .replay import Call

# What a model's own code raises where it cannot be run.
UNABLE = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, NotImplementedError)


class Blocks(NamedTuple):
    """Blocks in the order in which the stream passes them, their calls, and the names of those that text does not come by."""

    modules: list[nn.Module]
    calls: list[Call]
    skipped: tuple[str, ...]


def watched_blocks(model: Any, inputs: dict[str, Any]) -> Blocks:
    """The blocks of a causal language model, from one pass. AccountingError where it has no such chain, or the stream is changed inside it."""
    names = {module: name for name, module in model.named_modules()}
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    seen, logits = _watched(model, {block for blocks in lists for block in blocks}, names, inputs)
    blocks = _chosen(model, lists, seen)
    skipped = [block for block in blocks if block not in seen]
    modules = [block for block in blocks if block in seen]
    calls = [_once(seen[block]) for block in modules]
    broken = next((call.name for call in calls if not call.out.isfinite().all()), "the output head" if (logits.isnan() | logits.isposinf()).any() else None)
    if broken is not None:
        raise AccountingError(_not_finite(model, broken))
    for previous, following in itertools.pairwise(calls):
        if not torch.equal(previous.out, following.args[0]):
            raise AccountingError(f"The stream is changed between {previous.name} and {following.name}; this model cannot be edited yet.")
    return Blocks(modules, calls, tuple(names[block] for block in skipped))


def _chosen(model: Any, lists: Sequence[list[nn.Module]], seen: Mapping[nn.Module, list[Call]]) -> list[nn.Module]:
    """The one list of as many modules as the configuration has layers or, where that tells nothing, the longest that passes a stream on."""
    n_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    ran = [blocks for blocks in lists if any(block in seen for block in blocks)]
    named = outermost([blocks for blocks in ran if len(blocks) == n_layers])
    if len(named) != 1:
        chains = [blocks for blocks in ran if len(blocks) > 1 and _passes_on(blocks, seen)]
        named = sorted(outermost(chains), key=len, reverse=True)[:1]
    if not named:  # layers in a loop are told as such
        named = sorted((blocks for blocks in ran if len(seen.get(blocks[0], [])) > 1), key=len, reverse=True)[:1]
    if not named:
        raise AccountingError(f"{type(model).__name__} has no list of blocks that pass a stream on from one to the next; this model cannot be edited yet.")
    return named[0]


def outermost(lists: Sequence[list[nn.Module]]) -> list[list[nn.Module]]:
    """Lists of modules that lie inside no module of another list."""
    inside = [{module for block in blocks for module in block.modules()} for blocks in lists]
    return [blocks for number, blocks in enumerate(lists) if not any(blocks[0] in other for place, other in enumerate(inside) if place != number)]


def _passes_on(blocks: Sequence[nn.Module], seen: Mapping[nn.Module, list[Call]]) -> bool:
    calls = [seen.get(block, []) for block in blocks]
    if not all(len(call) == 1 and call[0].args and isinstance(call[0].args[0], Tensor) for call in calls):
        return False
    return all(torch.equal(previous[0].out, following[0].args[0]) for previous, following in itertools.pairwise(calls))


def _once(calls: list[Call]) -> Call:
    name = calls[0].name
    if len(calls) != 1:
        raise AccountingError(f"{name} runs {len(calls)} times in one pass (layers in a loop), and an edit of the stream has no one place there; this model cannot be edited yet.")
    call = calls[0]
    if call.out.dim() not in (3, 4) or not call.args or not isinstance(call.args[0], Tensor) or call.args[0].shape != call.out.shape:
        raise AccountingError(f"{name} does not return a stream of the shape that it received; this model cannot be edited yet.")
    return call


@torch.no_grad()
def _watched(model: Any, modules: set[nn.Module], names: Mapping[nn.Module, str], inputs: dict[str, Any]) -> tuple[dict[nn.Module, list[Call]], Tensor]:
    """The calls of these modules that return tensors, in one pass, and its logits."""
    seen: dict[nn.Module, list[Call]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        value = returned(output)
        if not isinstance(value, Tensor):
            return
        # Clones: some families add in place after the hook.
        args, kwargs = tuple(a.clone() if isinstance(a, Tensor) else a for a in args), dict(kwargs)
        if not args and STREAM in kwargs:  # the hidden states may come by keyword
            args = (kwargs.pop(STREAM).clone(),)
        seen.setdefault(module, []).append(Call(names[module], args, kwargs, value.clone()))

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in modules]
    try:
        return seen, _run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()


def _run(model: Any, inputs: dict[str, Any]) -> Tensor:
    """The logits of one forward pass over random tokens, the first that a model has to do.

    Raises AccountingError where it cannot be done, such as for a config.json with numbers that do not go together.
    """
    try:
        logits: Tensor = model(**inputs, use_cache=False).logits
        return logits
    except UNABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise AccountingError(
            f"it cannot be run on text ({type(error).__name__}: {reason}); correct its config.json, or download the model again."
        ) from error


def _not_finite(model: nn.Module, place: str) -> str:
    """Why values that are no numbers come out of `place`: weights that are none, or a dtype that is too narrow for what they compute."""
    damaged = next((name for name, weight in model.named_parameters() if weight.is_floating_point() and not weight.isfinite().all()), None)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    if damaged is not None:
        where = f" in {dtype}; use --dtype bfloat16, or, where its file holds such values too," if dtype == "float16" else ";"
        return f"{place} returns values that are not numbers, because the weight {damaged} holds such values{where} download the model again."
    wider = "--dtype bfloat16 or --dtype float32" if dtype == "float16" else "another dtype, such as --dtype float32"
    return f"{place} returns values that are not numbers although all weights are finite, so what it computes overflows {dtype}; use {wider}."
