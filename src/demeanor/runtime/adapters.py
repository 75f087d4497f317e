"""Adapters: what training put beside a model's weights, as hooks that come and go.

Low-rank maps (LoRA) on linear layers, which weights can take in; adaption prompts in attention, which PEFT computes; and
learned embeddings that open every prompt. Nothing of the model is wrapped or renamed, so an adapter acts together with
whatever else is attached. algorithms.md, section 9.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, FiniteFloat, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from ..arrays import dtype_name
from ..errors import ControlError
from ..io.checkpoint import read_json
from ..io.claims import refuse_output
from ..io.tensors import FLOATS
from ..structure.calls import on_output, received
from .acting import Acting, Pass
from .adapter import ADAPTER, ADAPTER_WEIGHTS, Adapter

VIRTUAL_TOKENS = "demeanor_virtual_tokens"  # the module that holds embeddings which open prompts, while they are trained
UNREAD = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "trainable_token_indices",
    "layer_replication",
)


class Adapted(Acting):
    """An adapter attached to a model; it acts on every row, or, where it is all low-rank maps, on those that `rows` names."""

    def __init__(self, model: nn.Module, adapter: Adapter) -> None:
        super().__init__(model)
        self.adapter = adapter
        self.rows: Tensor | None = None  # indices of rows of the batch; None for all
        self.virtual_tokens = 0 if adapter.virtual_tokens is None else len(adapter.virtual_tokens)
        modules = dict(model.named_modules())
        for name, (a, b) in adapter.low_rank.items():
            _refuse_other(name, modules.get(name), (a.shape[1], b.shape[0]), adapter.transposed)
        for name in adapter.prompts:
            _refuse_other(name, modules.get(name), None, adapter.transposed)

    def own_tokens(self) -> int | None:
        return None if self.adapter.prompts or self.virtual_tokens else 1

    def lay(self) -> None:
        for name, pair in self.adapter.low_rank.items():
            self._low_rank(self.model.get_submodule(name), *pair)
        for name, pair in self.adapter.prompts.items():
            self._prompted(self.model.get_submodule(name), *pair)
        if self.adapter.virtual_tokens is not None:
            place = next(self.model.parameters()).device
            embeddings = nn.Embedding.from_pretrained(self.adapter.virtual_tokens.to(place))
            for handle in virtual_token_hooks(self.decoder, embeddings, self.virtual_tokens, lambda: self.acts):
                self.hold(handle)

    def _like(self, module: nn.Module) -> dict[str, Any]:
        parameter = next(module.parameters(), next(self.model.parameters()))
        return {"device": parameter.device, "dtype": parameter.dtype if parameter.is_floating_point() else None}

    def _low_rank(self, module: nn.Module, a: Tensor, b: Tensor) -> None:
        like = self._like(module)
        down, up = a.to(**like), (self.adapter.dose * b.float()).to(**like)

        def after(m: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if not self.acts:
                return None
            x = received(args, {})
            if self.rows is None:
                return output + linear(linear(x, down.to(x.dtype)), up.to(x.dtype))
            if not len(self.rows):
                return None
            rows = self.rows.to(x.device)
            return output.index_add(0, rows, linear(linear(x[rows], down.to(x.dtype)), up.to(x.dtype)))

        self.hold(module.register_forward_hook(after))

    def _prompted(self, module: nn.Module, states: Tensor, gate: Tensor) -> None:
        if find_spec("peft") is None:
            raise ControlError("Adaption prompts are computed by peft, which the extra `train` brings: pip install 'demeanor[train]'.")
        from peft.tuners.adaption_prompt.layer import AdaptedAttention, AdaptedAttentionGPT

        said = _Said(module)
        model_type = str(getattr(module.config, "model_type", ""))
        prompted = (AdaptedAttentionGPT if model_type == "gpt2" else AdaptedAttention)(model_type, states.shape[1], said)
        like = self._like(module)
        prompted.adaption_prompt.data, prompted.adaption_gate.data = states.to(**like), (self.adapter.dose * gate.float()).to(**like)
        prompted.requires_grad_(False)
        named = inspect.signature(module.forward)

        def after(m: nn.Module, args: tuple[Any, ...], *rest: Any) -> Any:
            if not self.acts:
                return None
            kwargs, output = rest
            bound = named.bind(*args, **kwargs).arguments
            said.out = output
            return prompted(**{**{key: value for key, value in bound.items() if key != "kwargs"}, **bound.get("kwargs", {})})

        self.hold(module.register_forward_hook(after, with_kwargs=True))


class _Said:
    """An attention layer that has already run: all that is asked of it is what it has, and called, what it gave."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.out = module, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.out


def virtual_token_hooks(
    decoder: nn.Module, virtual_tokens: Callable[[Tensor], Tensor], count: int, acts: Callable[[], bool]
) -> Sequence[RemovableHandle]:
    """Handles of hooks that put the `count` embeddings of `virtual_tokens` in place of the first tokens of every row, where prompts
    are read and `acts` says so. `decoder` is the model without its head. Rows must begin with as many tokens that stand for them.
    """
    first: list[Tensor | None] = [None]

    def before(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if acts() and kwargs is not None:
            started = Pass(args, kwargs)
            first[0] = None if started.follows or started.ids is None else started.real.long().argmax(1)

    def opened(x: Tensor) -> Tensor | None:
        if first[0] is None or not acts():
            return None
        numbers = torch.arange(count, device=x.device)
        places = first[0][:, None] + numbers
        put = virtual_tokens(numbers).to(x.dtype).expand(len(x), -1, -1)
        return x.scatter(1, places[..., None].expand_as(put), put)

    embedding = decoder.get_input_embeddings()  # type: ignore[operator]
    return decoder.register_forward_pre_hook(before, with_kwargs=True), on_output(embedding, opened)


def _refuse_other(name: str, module: nn.Module | None, sizes: tuple[int, int] | None, transposed: bool) -> None:
    """Raises ControlError where the model lacks a module, or has it with other sizes (in, out)."""
    own = None if module is None else _sizes(module, transposed)
    if module is None or (sizes is not None and own is not None and sizes != own):
        raise ControlError(f"The adapter changes {name}, which this model does not have in that shape; it was made for another model.")


def _sizes(module: nn.Module, transposed: bool) -> tuple[int, int] | None:
    """(in, out) of a linear layer as its weight tells; None where it is packed."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.dim() != 2 or not weight.is_floating_point():
        return None
    rows, columns = weight.shape
    return (rows, columns) if transposed else (columns, rows)


def read_peft(folder: Path) -> Adapter:
    """The adapter in a folder of PEFT's: plain LoRA on linear layers, or adaption prompts. Raises ControlError for other kinds."""
    refuse_output(folder)
    values, path = read_json(folder / ADAPTER), folder / ADAPTER_WEIGHTS
    config = _config(values, folder / ADAPTER)
    if not path.is_file():
        raise ControlError(f"{folder} has no {ADAPTER_WEIGHTS}; save the adapter again.")
    unread = next((name for name in (*UNREAD, "target_parameters") if values.get(name)), None)
    if config.peft_type not in ("LORA", "ADAPTION_PROMPT") or unread is not None:
        kind = f"{config.peft_type} with {unread}" if unread else config.peft_type
        raise ControlError(f"{folder} holds an adapter of the kind {kind}, which cannot become a control; use plain LoRA on linear layers.")
    try:
        tensors = {key.removeprefix("base_model.model."): tensor for key, tensor in load_file(path).items()}
    except (SafetensorError, OSError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:  # some of a dtype torch lacks
        raise ControlError(f"{path} is not a complete safetensors file ({error}); save the adapter again.") from error
    wrong = next((key for key, tensor in tensors.items() if dtype_name(tensor) not in FLOATS or not tensor.numel() or not tensor.dim()), None)
    if wrong is not None:
        raise ControlError(f"{path}: the tensor {wrong} is empty or holds no numbers of a kind that can be used; save the adapter again.")
    virtual_tokens = tensors.pop(f"{VIRTUAL_TOKENS}.weight", None)
    halves = (".adaption_prompt", ".adaption_gate") if config.peft_type == "ADAPTION_PROMPT" else (".lora_A.weight", ".lora_B.weight")
    names = [key.removesuffix(halves[0]) for key in tensors if key.endswith(halves[0])]
    unknown = sorted(set(tensors) - {name + half for name in names for half in halves})
    missing = [name + halves[1] for name in names if name + halves[1] not in tensors]
    if unknown or missing:
        raise ControlError(
            f"{path} {'lacks' if missing else 'holds'} {(missing or unknown)[0]}; only plain LoRA and adaption prompts become controls."
        )
    pairs = {name: (tensors[name + halves[0]], tensors[name + halves[1]]) for name in names}
    if config.peft_type == "ADAPTION_PROMPT":
        return Adapter(prompts=pairs, virtual_tokens=virtual_tokens)
    made = {name: (a, _gain(config, name, len(a)) * b) for name, (a, b) in pairs.items()}
    return Adapter(low_rank=made, prompts={}, virtual_tokens=virtual_tokens, transposed=bool(config.fan_in_fan_out))


class _Config(BaseModel):
    """What is read of PEFT's adapter_config.json."""

    peft_type: str | None = None
    lora_alpha: FiniteFloat | None = None
    alpha_pattern: dict[str, FiniteFloat] | None = None
    use_rslora: bool | None = None
    fan_in_fan_out: bool | None = None


def _config(values: Mapping[str, Any], path: Path) -> _Config:
    """Raises ControlError for values of other types, for patterns that are none, and where the scale of plain LoRA is missing."""
    try:
        config = _Config.model_validate(values, strict=True)
        for pattern in config.alpha_pattern or {}:
            re.compile(pattern)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise ControlError(f"{path} is damaged ({'.'.join(map(str, first['loc']))}: {first['msg']}); save the adapter again.") from error
    except (re.error, OverflowError, RecursionError) as error:
        raise ControlError(f"{path}: alpha_pattern names layers by what is no pattern ({error}); save the adapter again.") from error
    if config.peft_type == "LORA" and config.lora_alpha is None:
        raise ControlError(f"{path} names no lora_alpha; save the adapter again.")
    return config


def _gain(config: _Config, name: str, rank: int) -> float:
    """What PEFT multiplies a layer's low-rank map with; its configuration may name other values for some layers, by pattern."""
    patterns = config.alpha_pattern or {}
    alpha = next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), config.lora_alpha)
    assert alpha is not None  # _config refuses plain LoRA without one
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)
