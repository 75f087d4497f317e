"""Proving what writes to a model's residual stream.

`prove(model)` runs a few tokens through the model and accounts for every block,
`h_out = alpha h_in + sum beta_i w_i` (algorithms.md, section 1), in float64, one block at a time. The
weights behind each writer w_i, and which of their axes is d_model, are found by gradient and then
checked by ablating a random direction in a copy of the block. Nothing is concluded from a name. A model
for which any step fails is refused with an AccountingError that names the place.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..algebra.directions import unit
from ..algebra.edits import ablate, edited
from ..algebra.norms import measured_gain
from ..errors import AccountingError
from ..progress import track
from .calls import STREAM, returned
from .layout import Layout, PostNorm, Role, Weight, Writer, writer_edits

RESIDUAL_TOLERANCE = 1e-5  # of the accounting, relative to what the block adds
GRADIENT_TOLERANCE = 1e-6  # of a gradient being along v on one axis, float64 with float32 norms inside


@dataclass
class _Call:
    """What one module received and returned in the proof's forward pass."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Tensor


def prove(model: Any) -> Layout:
    """The layout of a loaded causal language model, or an AccountingError naming what could not be proven."""
    experts = model.get_experts_implementation()
    model.set_experts_implementation("eager")  # the fast ways of running experts know no float64
    try:
        return _prove(model)
    finally:
        model.set_experts_implementation(experts)


def _prove(model: Any) -> Layout:
    config = model.config.get_text_config()
    names = {module: name for name, module in model.named_modules()}
    blocks = _block_list(model, config.num_hidden_layers)
    inner = {id(sub) for block in blocks for sub in block.modules()}
    outside = [m for m in model.modules() if isinstance(m, nn.Embedding) and id(m) not in inner]
    calls, embedded = _watch(model, blocks, outside, names)
    for previous, following in itertools.pairwise(calls):
        if not torch.equal(previous.out, following.args[0]):
            raise AccountingError(f"The stream is changed between {previous.name} and {following.name}; this model cannot be edited yet.")
    stream = calls[0].args[0]
    d_model = stream.shape[-1]
    writers = list(_embedding_writers(embedded, stream))
    worst, quantization = 0.0, getattr(model, "hf_quantizer", None) and model.config.quantization_config
    for layer, (block, call) in enumerate(track(zip(blocks, calls), "Proving the layout", len(blocks))):
        block_writers, residual = _block_writers(_Replay(block, call, quantization), layer)
        writers += block_writers
        worst = max(worst, residual)
    return Layout(
        model_type=config.model_type,
        d_model=d_model,
        blocks=tuple(names[block] for block in blocks),
        writers=tuple(writers),
        tied=_tied(model),
        worst_residual=worst,
    )


def _not_finite(model: nn.Module, place: str) -> str:
    """Why values that are no numbers come out of `place`: weights that are none, or a dtype that is too narrow for what they compute."""
    damaged = next((name for name, weight in model.named_parameters() if weight.is_floating_point() and not weight.isfinite().all()), None)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    if damaged is not None:
        where = f" in {dtype}; use --dtype bfloat16, or, where its file holds such values too," if dtype == "float16" else ";"
        return f"{place} returns values that are not numbers, because the weight {damaged} holds such values{where} download the model again."
    wider = "--dtype bfloat16 or --dtype float32" if dtype == "float16" else "another dtype, such as --dtype float32"
    return f"{place} returns values that are not numbers although all weights are finite, so what it computes overflows {dtype}; use {wider}."


def _block_list(model: nn.Module, n_layers: int) -> list[nn.Module]:
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    outer = [m for m in lists if not any(m is not other and m in set(other.modules()) for other in lists)]
    if len(outer) > 1:  # a model that also sees has blocks for images, on which text never comes by
        ran = _ran(model, [m[0] for m in outer])
        outer = [m for m in outer if m[0] in ran]
    if len(outer) != 1 or n_layers < 1:
        raise AccountingError(f"{type(model).__name__} has {len(outer)} lists of {n_layers} blocks where one was expected.")
    return list(outer[0])


def _tokens(model: Any) -> Tensor:
    """Random token ids [2, 9] for the proof."""
    vocab = model.config.get_text_config().vocab_size
    return torch.randint(vocab, (2, 9), generator=torch.Generator().manual_seed(0)).to(next(model.parameters()).device)


@torch.no_grad()
def _ran(model: nn.Module, modules: Sequence[nn.Module]) -> set[nn.Module]:
    """Which of these modules take part in a forward pass over text."""
    ran: set[nn.Module] = set()
    handles = [module.register_forward_hook(lambda m, args, out: ran.add(m)) for module in modules]
    try:
        _run(model)
    finally:
        for handle in handles:
            handle.remove()
    return ran


def _run(model: Any) -> Tensor:
    """The logits of one forward pass over random tokens, the first that a model has to do.

    Raises AccountingError where it cannot be done, such as for a config.json with numbers that do not go together.
    """
    try:
        logits: Tensor = model(input_ids=_tokens(model), use_cache=False).logits
        return logits
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AccountingError(
            f"it cannot be run on text ({type(error).__name__}: {reason}); correct its config.json, or download the model again."
        ) from error


@torch.no_grad()
def _watch(
    model: nn.Module, blocks: list[nn.Module], embeddings: Sequence[nn.Module], names: Mapping[nn.Module, str]
) -> tuple[list[_Call], list[tuple[nn.Embedding, _Call]]]:
    """One forward pass over random tokens: each block's call, and each embedding's."""
    seen: dict[nn.Module, list[_Call]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # Clones: some families add in place after the hook.
        args = tuple(a.clone() if isinstance(a, Tensor) else a for a in args)
        seen.setdefault(module, []).append(_Call(names[module], args, kwargs, returned(output).clone()))

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in [*blocks, *embeddings]]
    try:
        logits = _run(model)
    finally:
        for handle in handles:
            handle.remove()
    calls = []
    for block in blocks:
        once = seen.get(block, [])
        if len(once) != 1 or once[0].out.dim() != 3:
            raise AccountingError(f"{names[block]} ran {len(once)} times on one input; this model cannot be edited yet.")
        call = once[0]
        if not call.args:  # the hidden states may come by keyword
            call.args = (call.kwargs.pop(STREAM),)
        calls.append(call)
    broken = next((call.name for call in calls if not call.out.isfinite().all()), "the output head" if (logits.isnan() | logits.isposinf()).any() else None)
    if broken is not None:
        raise AccountingError(_not_finite(model, broken))
    return calls, [(module, call) for module in embeddings if isinstance(module, nn.Embedding) for call in seen.get(module, [])]


def _embedding_writers(embedded: list[tuple[nn.Embedding, _Call]], stream: Tensor) -> Iterator[Writer]:
    d_model = stream.shape[-1]
    terms = [(m, call) for m, call in embedded if call.out.shape[-1] == d_model]
    columns = [call.out.double().expand_as(stream) for _, call in terms]
    # One rounding of the product is all that separates the two sides, so the dtype sets the tolerance.
    tolerance = max(RESIDUAL_TOLERANCE, 4 * torch.finfo(stream.dtype).eps)
    scales, residual = _fit(columns, stream.double(), stream.double()) if columns else ([], 1.0)
    if residual > tolerance:
        raise AccountingError(f"The embeddings explain the stream only up to {residual:.1e}; this model cannot be edited yet.")
    for (module, call), scale in zip(terms, scales):
        ids = call.args[0] if call.args else None
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dtype == torch.bool or ids.shape != call.out.shape[:-1]:
            raise AccountingError(f"{call.name} does not look rows up by token; this model cannot be edited yet.")
        rows = module.weight[ids].double()
        _, missed = _fit([rows], call.out.double(), call.out.double())
        if missed > tolerance:
            raise AccountingError(f"{call.name} does not return rows of its weight; this model cannot be edited yet.")
        weight = Weight(f"{call.name}.weight", 1, tuple(module.weight.shape))
        yield Writer(module=call.name, layer=-1, role="embed", scale=round(scale, 6), weights=(weight,))


def _fit(columns: list[Tensor], target: Tensor, relative_to: Tensor) -> tuple[list[float], float]:
    """Least-squares scalars for target = sum scalar_i column_i, and the residual relative to a norm."""
    matrix, target = torch.stack([c.detach().reshape(-1) for c in columns], 1), target.detach()
    scalars = torch.linalg.lstsq(matrix, target.reshape(-1, 1)).solution
    left = target.reshape(-1, 1) - matrix @ scalars
    return scalars[:, 0].tolist(), float(left.norm() / relative_to.norm())


def _upcast(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(_upcast(item) for item in value)
    if isinstance(value, dict):
        return {key: _upcast(item) for key, item in value.items()}
    return value


def _dequantized(block: nn.Module, quantization: Any) -> nn.Module:
    """The block with ordinary weights of the values that its packed ones stand for."""
    if quantization.quant_method != "bitsandbytes":
        return block
    from transformers.integrations.bitsandbytes import dequantize_and_replace

    unpacked: nn.Module = dequantize_and_replace(block, quantization_config=quantization)
    return unpacked


class _Replay:
    """A float64 copy of one block that can be run again on the input it once received."""

    def __init__(self, block: nn.Module, call: _Call, quantization: Any) -> None:
        self.name = call.name
        plain = copy.deepcopy(block)
        if quantization is not None:
            plain = _dequantized(plain, quantization)
        packed = next((name for name, parameter in plain.named_parameters() if not parameter.is_floating_point()), None)
        if packed is not None:
            raise AccountingError(f"{self.name}.{packed} is held in a form whose values cannot be read; load an unquantised copy.")
        self.block = plain.double().eval()
        self.block.requires_grad_(True)
        self.args, self.kwargs = _upcast(call.args), _upcast(call.kwargs)

    def run(self) -> tuple[Tensor, dict[str, _Call]]:
        """The block's output, and every inner module's call in the order they finished; once-called ones only."""
        calls: dict[str, _Call] = {}
        repeated: set[str] = set()
        shape = self.args[0].shape
        names = {module: name for name, module in self.block.named_modules() if name}

        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            value, name = returned(output), names[module]
            if isinstance(value, Tensor) and value.shape == shape:
                repeated.update([name] if name in calls else [])
                calls[name] = _Call(name, args, kwargs, value.clone())

        handles = [module.register_forward_hook(record, with_kwargs=True) for module in names]
        try:
            out = returned(self.block(*self.args, **self.kwargs))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise AccountingError(f"{self.name} could not be run again in float64 ({reason}); this model cannot be edited yet.") from error
        finally:
            for handle in handles:
                handle.remove()
        return out, {name: call for name, call in calls.items() if name not in repeated}


def _block_writers(replay: _Replay, layer: int) -> tuple[list[Writer], float]:
    out, calls = replay.run()
    terms, scales, residual = _account(replay, out.detach(), calls)
    writers = []
    for term, scale in zip(terms, scales):
        raw, norm = _before_post_norm(replay, calls, term)
        weights = _weights_behind(replay, calls[raw].out)
        if not weights:
            raise AccountingError(f"{replay.name}: no weight was found behind the writer {raw}; this model cannot be edited yet.")
        role: Role = "attn" if _mixes_tokens(replay, calls, raw) else "mlp"
        writers.append(Writer(module=raw, layer=layer, role=role, scale=round(scale, 9), weights=tuple(weights), post_norm=norm))
    _check_by_ablation(replay, writers)
    return [_with_prefix(writer, replay.name) for writer in writers], residual


def _account(replay: _Replay, out: Tensor, calls: dict[str, _Call]) -> tuple[list[str], list[float], float]:
    """The fewest inner outputs that explain out - alpha h_in, their scalars and the relative residual."""
    stream = replay.args[0]
    distinct: dict[str, Tensor] = {}
    for name, call in calls.items():  # in finishing order: the innermost module that made a value comes first
        value = call.out.detach()
        if not torch.equal(value, stream) and not any(torch.equal(value, other) for other in distinct.values()):
            distinct[name] = value
    best, on_stream = 1.0, False
    for size in (1, 2, 3):
        for names in itertools.combinations(distinct, size):
            scalars, _ = _fit([stream, *(distinct[name] for name in names)], out, out)
            update = out - scalars[0] * stream
            explained = sum(s * distinct[name] for s, name in zip(scalars[1:], names))
            residual = float((update - explained).norm() / update.norm())
            if residual <= RESIDUAL_TOLERANCE:
                if abs(scalars[0]) > 1e-3:
                    return list(names), scalars[1:], residual
                on_stream = True
            best = min(best, residual)
    if on_stream:
        raise AccountingError(
            f"{replay.name} overwrites the stream (a norm sits on it, or a module adds the residual inside); this model cannot be edited yet."
        )
    raise AccountingError(
        f"{replay.name}: what it adds to the stream is explained only up to {best:.1e} (must be {RESIDUAL_TOLERANCE:.0e}); this model cannot be edited yet."
    )


def _before_post_norm(replay: _Replay, calls: dict[str, _Call], term: str) -> tuple[str, PostNorm | None]:
    """The module that writes before a norm, and that norm; (term, None) where no norm follows."""
    module, given = replay.block.get_submodule(term), calls[term].args
    if not given or not isinstance(given[0], Tensor) or given[0].shape != calls[term].out.shape:
        return term, None
    with torch.no_grad():
        x = unit(given[0]) * given[0].shape[-1] ** 0.5  # far above any epsilon
        once, doubled = (returned(module(factor * x, *given[1:], **calls[term].kwargs)) for factor in (1, 2))
    if float((doubled - once).norm() / once.norm()) > 1e-3:  # a norm forgets scale
        return term, None
    raw = next((name for name, call in calls.items() if torch.equal(call.out, given[0])), None)
    if raw is None or _before_post_norm(replay, calls, raw)[1] is not None:
        raise AccountingError(f"{replay.name}: the writer before the norm {term} was not found; this model cannot be edited yet.")
    return raw, _describe_norm(replay, term, module)


def _describe_norm(replay: _Replay, name: str, module: nn.Module) -> PostNorm:
    d_model = replay.args[0].shape[-1]
    with torch.no_grad():
        gain, bias, centred = measured_gain(module, d_model, replay.args[0])
    own = {key: p.detach().double() for key, p in module.named_parameters() if p.shape == (d_model,)}
    shifts = {key: gain - value for key, value in own.items()}
    weight = next((key for key, shift in shifts.items() if float(shift.std()) < 1e-4 * float(gain.abs().mean())), None)
    offset = float((shifts[weight] if weight else gain).mean())
    bias_name = next((key for key, value in own.items() if key != weight and torch.allclose(value, bias, atol=1e-5)), None)
    if (weight is None and float(gain.std()) > 1e-4) or (bias_name is None and float(bias.abs().max()) > 1e-5):
        raise AccountingError(f"{replay.name}.{name}: the norm's gain could not be read from its weights; this model cannot be edited yet.")
    return PostNorm(name, weight and f"{name}.{weight}", round(offset, 4), bias_name and f"{name}.{bias_name}", centred)


def _weights_behind(replay: _Replay, out: Tensor) -> list[Weight]:
    """Parameters whose gradient of v.out is along v on exactly one axis: those that write d_model."""
    d_model = out.shape[-1]
    v = torch.randn(d_model, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.device)
    names, parameters = zip(*replay.block.named_parameters())
    gradients = torch.autograd.grad((out * v).sum(), parameters, allow_unused=True, retain_graph=True)
    weights = []
    for name, gradient in zip(names, gradients):
        if gradient is None or not gradient.any():
            continue
        axes = [axis for axis in range(gradient.dim()) if gradient.shape[axis] == d_model and _along(gradient, axis, v)]
        if len(axes) > 1:
            raise AccountingError(f"{replay.name}.{name} could write the stream on axes {axes}; this model cannot be edited yet.")
        weights += [Weight(name, axis, tuple(gradient.shape)) for axis in axes]
    return weights


def _along(gradient: Tensor, axis: int, v: Tensor) -> bool:
    rows = gradient.movedim(axis, -1).reshape(-1, v.numel())
    direction = unit(v)
    left = rows - (rows @ direction)[:, None] * direction
    return bool(left.norm() < GRADIENT_TOLERANCE * rows.norm())


def _mixes_tokens(replay: _Replay, calls: dict[str, _Call], raw: str) -> bool:
    """Whether the part of the block that holds a writer lets the last token see the first: attention does, an MLP does not."""
    part = raw.split(".")[0]
    if part not in calls:
        raise AccountingError(f"{replay.name}: {part} returns no output of the stream's shape; this model cannot be edited yet.")

    def bumped(value: Any) -> Any:
        if isinstance(value, Tensor) and value.shape == calls[part].out.shape:
            return torch.cat([value[:, :1] + 1.0, value[:, 1:]], 1)
        return value

    args = tuple(bumped(a) for a in calls[part].args)
    kwargs = {key: bumped(a) for key, a in calls[part].kwargs.items()}
    with torch.no_grad():
        out = returned(replay.block.get_submodule(part)(*args, **kwargs))
    return bool((out[:, -1] - calls[part].out[:, -1]).abs().max() > 1e-12)


@torch.no_grad()
def _check_by_ablation(replay: _Replay, writers: list[Writer]) -> None:
    """Ablate a random direction in the copy's weights: nothing of it may be left in any contribution."""
    d_model = replay.args[0].shape[-1]
    r = unit(torch.randn(1, d_model, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).to(replay.args[0])
    for writer in writers:
        for name, axis, edit in writer_edits(writer, ablate(r), replay.block.get_parameter):
            parameter = replay.block.get_parameter(name)
            parameter.copy_(edited(parameter, axis, edit))
    _, calls = replay.run()
    for writer in writers:
        out = calls[writer.contribution].out
        left = float(((out @ r[0]).abs() / out.norm(dim=-1).clamp_min(1e-30)).max())
        if left > 1e-6:
            raise AccountingError(
                f"{replay.name}.{writer.module}: {left:.1e} of an ablated direction is left, so not all of its weights were found; this model cannot be edited yet."
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
    if head is None or embedding.weight is not head.weight:
        return None
    names = {module: name for name, module in model.named_modules()}
    return f"{names[embedding]}.weight", f"{names[head]}.weight"
