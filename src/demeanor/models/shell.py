"""A model of transformers without its weights: its modules, and the files that each of them is read from when it is needed.

Modules lie on the meta device. Their weights come through the framework's own renaming and conversion, parameter by parameter, and go
again. Buffers that are computed (the frequencies of rotary positions) are real from the beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..io.checkpoint import Checkpoint
from ..structure.fetched import auto_class, fetched, without_bars
from ..structure.proof import one_name_each, tied_names
from ..structure.stored_names import StoredNames
from ..structure.stored_values import StoredValues

META = torch.device("meta")


class Shell:
    """The modules of the model in `checkpoint`, which its user calls `name`; dtype and device are those that it computes with.

    Raises ModelError where the framework cannot make the model, or where the files lack a tensor of it.
    """

    def __init__(self, name: str, checkpoint: Checkpoint, dtype: torch.dtype | None, device: torch.device, trust_remote_code: bool = False) -> None:
        self.name, self.device = name, device
        self.values = StoredValues(checkpoint)
        self.model = fetched(name, lambda: _modules(checkpoint, dtype, trust_remote_code))
        self.dtype: torch.dtype = self.model.dtype
        self.stored = StoredNames(self.values.source, self.model)
        # Told while the modules still share what is tied.
        self.tied, self.one_name_each = tied_names(self.model), one_name_each(self.model)
        self._rules = _rules(self.model)
        self._plan = self.model._get_dtype_plan(self.dtype)
        fetched(name, lambda: _with_buffers(self.model, device))
        self._refuse_incomplete()

    def _refuse_incomplete(self) -> None:
        lacks = self.stored.missing()
        ignored = tuple(self.model._keys_to_ignore_on_load_missing or ())
        lacks = [key for key in lacks if not any(part in key for part in ignored)]
        if lacks:
            raise ModelError(f"{self.name} has no tensor {lacks[0]}, which its config.json asks for; download the model again or correct the config.")

    @property
    def bytes_read(self) -> int:
        """Of the files, up to now."""
        return self.values.bytes_read

    def size(self, module: str) -> int:
        """Bytes in memory of all parameters of a module, by its name."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.model.get_submodule(module).parameters())

    @contextmanager
    def reading(self, module: str) -> Iterator[nn.Module]:
        """A module with all of its weights, which go when the context ends."""
        self.read(module)
        try:
            yield self.model.get_submodule(module)
        finally:
            self.drop(module)

    def read(self, module: str, recurse: bool = True) -> None:
        """Give a module its weights; without `recurse` those alone that it holds itself."""
        for name in self._held(module, recurse):
            if self._value(name).device == META:  # else it came with another one, out of one tensor of the files
                self._read(name)
        left = next((name for name in self._held(module, recurse) if self._value(name).device == META), None)
        if left is not None:
            raise ModelError(f"{self.name} has no tensor {left} that fits its config.json; download the model again or correct the config.")

    def drop(self, module: str, recurse: bool = True) -> None:
        """Let the weights of a module go."""
        inside = self.model.get_submodule(module)
        for owner in inside.modules() if recurse else (inside,):
            for name, parameter in owner.named_parameters(recurse=False):
                setattr(owner, name, nn.Parameter(torch.empty_like(parameter, device=META), requires_grad=False))

    def tensor(self, name: str) -> Tensor:
        """One parameter, by its name, of a module that keeps none of it."""
        there = self._value(name).device != META
        if not there:
            self._read(name)
        value = self._value(name).detach()
        if not there:
            owner, _, leaf = name.rpartition(".")
            setattr(self.model.get_submodule(owner), leaf, nn.Parameter(torch.empty_like(value, device=META), requires_grad=False))
        return value

    def _held(self, module: str, recurse: bool) -> list[str]:
        """The names of the parameters and buffers of a module."""
        inside, prefix = self.model.get_submodule(module), f"{module}." if module else ""
        held = [*inside.named_parameters(recurse=recurse, remove_duplicate=False), *inside.named_buffers(recurse=recurse)]
        return [prefix + name for name, _ in held]

    def _value(self, name: str) -> Tensor:
        owner, _, leaf = name.rpartition(".")
        return getattr(self.model.get_submodule(owner), leaf)  # type: ignore[no-any-return]

    def _read(self, name: str) -> None:
        """Read the tensors of the files behind one parameter or buffer, and whatever else comes out of them."""
        under = next((alias for alias in (name, *self.stored.aliases(name)) if self.stored.sources(alias)), None)
        if under is None:
            raise ModelError(f"{self.name} has no tensor {name}, which its config.json asks for; download the model again or correct the config.")
        if under == name or self.model.get_parameter(under).device == META:
            _load(self, self.stored.sources(under))
        if under != name:  # tied: one parameter under two names
            owner, _, leaf = name.rpartition(".")
            setattr(self.model.get_submodule(owner), leaf, self.model.get_parameter(under))


class _Lazy:
    """A tensor of the files that is read when the framework takes it."""

    def __init__(self, shell: Shell, key: str) -> None:
        self._shell, self._key = shell, key

    def __getitem__(self, whole: Any) -> Tensor:
        return self._shell.values.read(self._key, self._shell.dtype)


def _load(shell: Shell, keys: list[str]) -> None:
    """Tensors of the files into the model, by the framework's own way of loading. It is no public interface: a test pins what it does."""
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    how = LoadStateDictConfig(dtype=shell.dtype, dtype_plan=shell._plan, weight_mapping=shell._rules, device_map={"": shell.device})
    with without_bars():
        info, _ = convert_and_load_state_dict_in_model(shell.model, {key: _Lazy(shell, key) for key in keys}, how)
    if info.mismatched_keys:
        raise ModelError(f"{shell.name} has another shape of {min(info.mismatched_keys)[0]}, which its config.json asks for; download the model again or correct the config.")
    if info.conversion_errors:
        name, said = next(iter(info.conversion_errors.items()))
        raise ModelError(f"{name} of {shell.name} could not be read: {' '.join(str(said).split())[:200]}")


def _modules(checkpoint: Checkpoint, dtype: torch.dtype | None, trust_remote_code: bool) -> Any:
    """The model on the meta device, in the dtype of its configuration unless told."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=trust_remote_code)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # weights are unpacked as they are read
    kept = config.dtype if isinstance(config.dtype, torch.dtype) else None
    with torch.device(META):
        made = auto_class(config).from_config(config, dtype=dtype or kept or torch.float32, trust_remote_code=trust_remote_code)
    return made.eval().requires_grad_(False)


def _rules(model: Any) -> list[Any]:
    from transformers.conversion_mapping import get_model_conversion_mapping

    return list(get_model_conversion_mapping(model))


def _with_buffers(model: Any, device: torch.device) -> None:
    """Compute the buffers that lie in no file, as the framework does once it has loaded the rest; whatever lies in one is on no device."""
    stored = set(model.state_dict())
    for owner in model.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.device != META:  # some are made on a device whatever they are told
                setattr(owner, name, nn.Parameter(torch.empty_like(parameter, device=META), requires_grad=False))
    for name, buffer in model.named_buffers():
        if name in stored and buffer.device != META:
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner)._buffers[leaf] = torch.empty_like(buffer, device=META)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in stored:
            tensor._is_hf_initialized = True
    model._move_missing_keys_from_meta_to_device(set(), {"": device}, None, None)
    model._initialize_missing_keys(False)
