"""Which tensors of a model's files hold which of its parameters.

Names in files differ from names in the loaded model: experts lie in files one by one and in memory as one tensor,
some families transpose them, models that also see have prefixes of their own. The framework's own renaming and conversion say
what becomes of every file tensor; which of its axes ends up as d_model is not read from them but tried out,
on small numbered stand-ins.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..io.checkpoint import Checkpoint
from .fetched import auto_class, fetched
from .layout import Weight

if TYPE_CHECKING:
    from transformers.core_model_loading import WeightConverter


@dataclass(frozen=True)
class Piece:
    """A tensor of the files that holds a parameter, or one expert of it; `axis` is the one that is d_model."""

    key: str
    axis: int


@dataclass(frozen=True)
class _Origin:
    """The file tensors that become one parameter, by the pattern they matched, in order; None where none converts them."""

    keys: dict[str, list[str]]
    converter: WeightConverter | None


class StoredNames:
    """The parameters of the model that `checkpoint` would load as (`model`, where it is made already), and the file tensors behind each."""

    def __init__(self, checkpoint: Checkpoint, model: Any = None) -> None:
        self.checkpoint = checkpoint
        model = _described(checkpoint) if model is None else model
        self._origins = _origins(checkpoint, model)
        self._names = tuple(model.state_dict())
        self._groups = _shared(model)
        converters = {id(origin.converter): origin.converter for origin in self._origins.values() if origin.converter is not None}
        self._splits = [tuple(converter.target_patterns) for converter in converters.values()]

    def keys(self, name: str) -> list[str]:
        """Every file tensor behind a parameter; empty when the files hold none."""
        origin = self._origins.get(name)
        return [key for keys in origin.keys.values() for key in keys] if origin else []

    def sources(self, name: str) -> list[str]:
        """Every file tensor that is read for a parameter, where it comes out of one that is split into several too."""
        return self.keys(name) or [key for first in self._split_from(name) for key in self.keys(first)]

    def key(self, name: str) -> str | None:
        """The one file tensor that is this parameter, as it stands; None when there is none."""
        origin = self._origins.get(name)
        return self.keys(name)[0] if origin and origin.converter is None else None

    def aliases(self, name: str) -> tuple[str, ...]:
        """Every name of the parameter `name`, itself among them: a model that ties weights has one under several names."""
        return self._groups.get(name, (name,))

    def missing(self) -> list[str]:
        """Parameters and saved buffers that the model would have and for which the files hold no tensor under any of their names."""
        return [name for name in self._names if not any(alias in self._origins or self._is_split(alias) for alias in self.aliases(name))]

    def _is_split(self, name: str) -> bool:
        """Whether a parameter comes out of a file tensor that is split into several, of which the first names it."""
        return bool(self._split_from(name))

    def _split_from(self, name: str) -> list[str]:
        """The parameters that name the file tensors which this one is split from."""
        firsts = [name.replace(other, first) for first, *others in self._splits for other in others if other in name]
        return [first for first in firsts if first in self._origins][:1]

    def unused(self) -> list[str]:
        """Tensors of the files that are no part of the model as it is loaded: heads for drafts or for several tokens at once, say."""
        known = set(self._names)
        return [key for name, origin in self._origins.items() if name not in known for keys in origin.keys.values() for key in keys]

    def pieces(self, weight: Weight) -> tuple[Piece, ...]:
        """The file tensors behind a weight, with their d_model axes; empty when the files hold none of that shape.

        Raises ModelError where they are converted in a way that leaves no single axis as d_model.
        """
        origin = self._origins.get(weight.name)
        if origin is None:
            return ()
        keys = self.keys(weight.name)
        stored = [self.checkpoint.tensors[key].shape for key in keys]
        if origin.converter is None:
            return (Piece(keys[0], weight.axis),) if stored[0] == weight.shape else ()
        if len(origin.keys) > 1 or len(set(stored)) > 1:
            raise ModelError(
                f"{self.checkpoint.folder} holds {weight.name} as {len(keys)} different tensors ({keys[0]} first); this form cannot be edited yet."
            )
        axis = _axis_in_file(origin.converter, weight, len(keys), stored[0])
        if axis is None:
            raise ModelError(f"{self.checkpoint.folder} holds {weight.name} in a form that cannot be edited in place yet ({keys[0]}).")
        same_size = sum(map(math.prod, stored)) == math.prod(weight.shape)
        return tuple(Piece(key, axis) for key in keys) if same_size and stored[0][axis] == weight.shape[weight.axis] else ()


def _described(checkpoint: Checkpoint) -> Any:
    """The model that a checkpoint would load as, without its values."""
    import torch
    from transformers import AutoConfig

    def described() -> Any:
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
        with torch.device("meta"):
            return auto_class(config).from_config(config, trust_remote_code=False)

    return fetched(str(checkpoint.folder), described)


def _shared(model: Any) -> dict[str, tuple[str, ...]]:
    """All names of the parameters that have several, by each of them."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return {name: tuple(group) for group in names.values() if len(group) > 1 for name in group}


def _origins(checkpoint: Checkpoint, model: Any) -> dict[str, _Origin]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    names = model.state_dict()
    origins: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for key in sorted(checkpoint.tensors, key=dot_natural_key):  # experts in their order
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, names)
        if name not in names and key in names:
            name, pattern = key, None
        origins[name][pattern or ""].append(key)
    return {name: _Origin(dict(keys), by_pattern[next(iter(keys))] if "" not in keys else None) for name, keys in origins.items()}


def _axis_in_file(converter: WeightConverter, weight: Weight, count: int, stored: tuple[int, ...]) -> int | None:
    """The axis of each of `count` file tensors [stored] that becomes the weight's d_model axis; None when no single one does."""
    if any(getattr(operation, "check_dims", False) for operation in converter.operations):
        return _axis_if_turned(converter, weight, count, stored)
    import torch

    rank = len(stored)
    sizes = tuple(range(2, 2 + rank))  # all different, so that no two axes can be mistaken for each other
    each = math.prod(sizes)
    numbered = [torch.arange(each).reshape(sizes) + number * each for number in range(count)]
    values: dict[str, Any] = {converter.source_patterns[0]: numbered}
    for operation in converter.operations:
        values = operation.convert(values, source_patterns=converter.source_patterns, target_patterns=converter.target_patterns)
    if len(values) != 1:
        return None
    (converted,) = values.values()
    converted = converted[0] if isinstance(converted, list) else converted
    if converted.dim() != len(weight.shape) or not torch.equal(converted.flatten().sort().values, torch.arange(count * each)):
        return None
    strides = [each // math.prod(sizes[: axis + 1]) for axis in range(rank)]
    steps = converted.diff(dim=weight.axis).unique().tolist()
    return next((axis for axis in range(rank) if steps == [strides[axis]] and converted.shape[weight.axis] == sizes[axis]), None)


def _axis_if_turned(converter: WeightConverter, weight: Weight, count: int, stored: tuple[int, ...]) -> int | None:
    """The same where two axes change places unless the sizes are those of the parameter already."""
    if count != 1 or len(converter.operations) != 1:
        return None
    if tuple(stored) == tuple(weight.shape):
        return weight.axis
    turn: Any = converter.operations[0]
    axes: dict[int, int] = {turn.dim0: turn.dim1, turn.dim1: turn.dim0}
    return axes.get(weight.axis, weight.axis)
