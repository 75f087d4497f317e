"""Calls of modules: where the stream stands in what a module receives and returns, whatever its family.

Nothing else in the package unpacks a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

STREAM = "hidden_states"  # the keyword by which a block receives the stream
Change = Callable[[Tensor], Tensor | None]  # None leaves the value as it is


def received(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The value that a module works on."""
    return args[0] if args else kwargs[STREAM]


def returned(output: Any) -> Any:
    """The value that a module gives on; attention and some blocks return more beside it."""
    return output[0] if isinstance(output, tuple) else output


def on_input(module: nn.Module, change: Change) -> RemovableHandle:
    """`change` is given what the module receives, and what it gives back is received instead."""

    def before(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        changed = change(received(args, kwargs))
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, STREAM: changed})

    return module.register_forward_pre_hook(before, with_kwargs=True)


def on_output(module: nn.Module, change: Change) -> RemovableHandle:
    """`change` is given what the module returns, and what it gives back is returned instead."""

    def after(m: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        changed = change(returned(output))
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return module.register_forward_hook(after)


def is_linear(module: nn.Module) -> bool:
    """Whether a module's output is a weight times its input: a linear layer, or its transposed kind."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
