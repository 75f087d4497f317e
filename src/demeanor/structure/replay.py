"""Parts of a model run again in float64 on what they once received, with chosen outputs changed and all of them recorded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..algebra.bases import unit
from ..errors import AccountingError
from .calls import returned


@dataclass
class Call:
    """What one module received and returned in the proof's forward pass."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Tensor


def upcast(value: Any) -> Any:
    return each_tensor(value, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A value with every tensor in it changed, in tuples, lists and dictionaries too."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        return type(value)(each_tensor(item, change) for item in value)
    if isinstance(value, dict):
        return {key: each_tensor(item, change) for key, item in value.items()}
    return value


def without(value: Tensor, r: Tensor) -> Tensor:
    """A tensor [..., d_model], or [..., copies * d_model], without its component along the unit vector r [d_model]."""
    copies = value.reshape(*value.shape[:-1], -1, len(r))
    direction = r.to(copies)
    return (copies - (copies @ direction)[..., None] * direction).reshape(value.shape)


def left_of(r: Tensor, value: Tensor) -> float:
    """The largest share of r [d_model] in the rows of a tensor [..., d_model] or [..., copies * d_model]."""
    rows = value.reshape(-1, len(r))
    return float(((rows @ r.to(rows)).abs() / rows.norm(dim=-1).clamp_min(1e-30)).max())


def random_direction(d_model: int, seed: int, like: Tensor) -> Tensor:
    """A random unit vector [d_model], the same for the same seed."""
    rng = torch.Generator().manual_seed(seed)
    return unit(torch.randn(d_model, generator=rng, dtype=torch.float64)).to(like.device)


class Replay:
    """A float64 copy of one block that can be run again on the input it once received."""

    def __init__(self, block: nn.Module, call: Call, d_model: int, quantization: Any) -> None:
        self.name, self.d_model = call.name, d_model
        doubles = {} if quantization is not None else {id(p): nn.Parameter(p.detach().to(torch.float64, copy=True)) for p in block.parameters() if p.is_floating_point()}
        plain = copy.deepcopy(block, doubles)  # large weights are converted in one step, not copied first
        if quantization is not None:
            plain = _dequantized(plain, quantization)
        packed = next((name for name, parameter in plain.named_parameters() if not parameter.is_floating_point()), None)
        if packed is not None:
            raise AccountingError(f"{self.name}.{packed} is held in a form whose values cannot be read; load an unquantised copy.")
        self.block = plain.double().eval()
        self.block.requires_grad_(True)
        self.args, self.kwargs = upcast(call.args), upcast(call.kwargs)
        self._names = {module: name for name, module in self.block.named_modules() if name}

    @property
    def stream(self) -> Tensor:
        """What the block received: [row, token, d_model], or with copies of the stream before d_model or side by side in it."""
        stream: Tensor = self.args[0]
        return stream

    def is_term(self, value: Any) -> bool:
        """Whether a value could be part of the stream: one vector [d_model] for every token, whatever the axes before it."""
        rows = self.stream.shape[0] * self.stream.shape[1]
        return isinstance(value, Tensor) and value.is_floating_point() and value.shape[-1] == self.d_model and value.numel() == rows * self.d_model

    def run(self, r: Tensor | None = None, projected: Collection[str] = (), along: Tensor | None = None) -> tuple[Tensor, dict[str, Call]]:
        """The block's output, and every inner module's call in the order they finished; once-called ones only.

        r: a direction that is taken out of everything of the stream's width that comes in; along: the one (r unless told) that is taken
        out of what the modules `projected` return.
        """
        calls: dict[str, Call] = {}
        repeated: set[str] = set()

        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            value, name = returned(output), self._names[module]
            if not self.is_term(value) or passes_through(args, value):
                return None
            change = name in projected and (along is not None or r is not None)
            if change:
                value = without(value, along if along is not None else r)  # type: ignore[arg-type]
            repeated.update([name] if name in calls else [])
            calls[name] = Call(name, args, kwargs, value.clone())
            return None if not change else (value, *output[1:]) if isinstance(output, tuple) else value

        def clean(value: Tensor) -> Tensor:
            wide = value.is_floating_point() and value.dim() > 2 and value.shape[-1] % self.d_model == 0
            return without(value, r) if wide and r is not None else value

        args, kwargs = each_tensor(self.args, clean), each_tensor(self.kwargs, clean)
        handles = [module.register_forward_hook(record, with_kwargs=True) for module in self._names]
        try:
            out = returned(self.block(*args, **kwargs))
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise AccountingError(f"{self.name} could not be run again in float64 ({reason}); this model cannot be edited yet.") from error
        finally:
            for handle in handles:
                handle.remove()
        return out, {name: call for name, call in calls.items() if name not in repeated}


def passes_through(args: tuple[Any, ...], value: Tensor) -> bool:
    """Whether a module gives back what it was given, as dropout does, and so writes nothing."""
    return bool(args) and isinstance(args[0], Tensor) and args[0].shape == value.shape and torch.equal(args[0], value)


def _dequantized(block: nn.Module, quantization: Any) -> nn.Module:
    """The block with ordinary weights of the values that its packed ones stand for."""
    if quantization.quant_method != "bitsandbytes":
        return block
    from transformers.integrations.bitsandbytes import dequantize_and_replace

    unpacked: nn.Module = dequantize_and_replace(block, quantization_config=quantization)
    return unpacked
