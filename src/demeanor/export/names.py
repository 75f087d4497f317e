"""Which tensors of a checkpoint hold a parameter, and on which axis they are edited."""

from __future__ import annotations

from torch import Tensor

from ..controls import Control
from ..errors import ControlError, ModelError
from ..io.checkpoint import Checkpoint
from ..structure.layout import Weight
from ..structure.stored_names import Piece, StoredNames
from .forms import refuse_form, unpacked

EDITABLE = ("F64", "F32", "F16", "BF16")


class PlainNames:
    """The same as StoredNames says where files hold every parameter under its own name: that takes no framework, which takes seconds to import."""

    def __init__(self, source: Checkpoint) -> None:
        self.source = source

    def keys(self, name: str) -> list[str]:
        return [name] if name in self.source.tensors else []

    def key(self, name: str) -> str | None:
        return name if name in self.source.tensors else None

    def pieces(self, weight: Weight) -> tuple[Piece, ...]:
        return (Piece(weight.name, weight.axis),)


def _all_plain(source: Checkpoint, control: Control) -> bool:
    """Whether the files hold all that a control may change under the names and with the shapes of the model.

    Tensors of three axes are left to the framework: some families turn theirs round as they are read, under the same name.
    """
    held = source.tensors
    writers = control.layout.writers
    weights = [weight for writer in writers for weight in writer.weights]
    norms = [name for writer in writers if writer.post_norm for name in (writer.post_norm.weight, writer.post_norm.bias) if name]
    linear = [
        (f"{module}.weight", (a.shape[1], len(b)) if adapter.transposed else (len(b), a.shape[1]))
        for adapter in control.adapters
        for module, (a, b) in adapter.low_rank.items()
    ]
    shapes = [(weight.name, tuple(weight.shape)) for weight in weights] + linear
    return all(name in held and held[name].shape == shape and len(shape) < 3 for name, shape in shapes) and all(name in held for name in norms)


class FileTensors:
    """Finds the tensors a layout speaks of in the files, and checks that they are what was proven."""

    def __init__(self, source: Checkpoint, control: Control) -> None:
        self.layout = control.layout
        self.source, self.packed = unpacked(source)
        self._files = source
        text = source.section("text_config")
        kind = source.config.get("model_type"), text.get("model_type")
        if self.layout.model_type not in kind:
            raise ControlError(
                f"The control was made for structure {self.layout.hash} (a {self.layout.model_type} model, {control.model_name}), and {source.folder} is a {kind[0]} model."
            )
        layers = (text or source.config).get("num_hidden_layers", self.layout.n_layers)
        if layers != self.layout.n_layers:
            raise ControlError(
                f"The control was made for structure {self.layout.hash} of {self.layout.n_layers} layers, and {source.folder} has {layers}."
            )
        self.stored = PlainNames(self.source) if _all_plain(self.source, control) else StoredNames(self.source)
        self.pieces = {weight.name: self._pieces(weight) for writer in self.layout.writers for weight in writer.weights}

    def _pieces(self, weight: Weight) -> tuple[Piece, ...]:
        keys = self.stored.keys(weight.name)
        if not keys or any(not self._editable(key) for key in keys):
            refuse_form(self._files, keys[0] if keys else weight.name)
        if not keys:
            raise ControlError(
                f"The control was made for structure {self.layout.hash}, and {self.source.folder} has no tensor {weight.name}."
            )
        stored = self.source.tensors[keys[0]]
        if any(not self._editable(key) for key in keys):
            raise ModelError(
                f"{weight.name} in {self.source.folder} is stored as {stored.dtype}, which cannot be edited exactly; use an unquantised copy."
            )
        pieces = self.stored.pieces(weight)
        if not pieces:
            raise ControlError(
                f"The control was made for structure {self.layout.hash}, in which {weight.name} is {list(weight.shape)}; in {self.source.folder} it is {list(stored.shape)}."
            )
        return pieces

    def _editable(self, key: str) -> bool:
        return key in self.packed or self.source.tensors[key].dtype in EDITABLE

    def of(self, name: str, axis: int) -> tuple[Piece, ...]:
        """The file tensors to edit for a parameter of the layout: a weight behind a writer, or a norm's bias."""
        return self.pieces[name] if name in self.pieces else (Piece(self.key(name), axis),)

    def linear(self, module: str, out: int, into: int, transposed: bool) -> str:
        """The file tensor that is a linear layer's weight."""
        key = self.stored.key(f"{module}.weight")
        if key is None and self.layout.tied is not None and f"{module}.weight" == self.layout.tied[1]:
            return self.layout.tied[1]  # it becomes a tensor of its own, with the values of the embedding
        shape = (into, out) if transposed else (out, into)
        if key is None or self.source.tensors[key].shape != shape or not self._editable(key):
            raise ControlError(
                f"The adapter changes {module}, and {self.source.folder} does not hold its weight as one tensor {list(shape)} that can be edited; it cannot be baked into these files."
            )
        return key

    def key(self, name: str) -> str:
        key = self.stored.key(name)
        if key is None:
            raise ControlError(f"The control was made for structure {self.layout.hash}, and {self.source.folder} has no tensor {name}.")
        return key

    def read(self, name: str) -> Tensor:
        """A whole (small) tensor, float32."""
        return self.source.read(self.key(name)).float()
