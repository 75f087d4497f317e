"""Which tensors of a checkpoint hold a parameter, and on which axis they are edited."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..controls import Control
from ..errors import ControlError, ModelError
from ..io.checkpoint import Checkpoint
from ..io.floats import STORED, Numbers, widened
from ..structure.forms import refuse_form, unpacked
from ..structure.layout import Weight
from ..structure.stored_names import Piece, StoredNames

EDITABLE = ("F64", "F32", "F16", "BF16")


class PlainNames:
    """The same as StoredNames says where files hold every parameter under its own name: that takes no framework, which takes seconds to import.

    What the model would lack, and what of the files it would not use, only the framework knows: nothing is said of it here.
    """

    def __init__(self, source: Checkpoint) -> None:
        self.source = source

    def keys(self, name: str) -> list[str]:
        return [name] if name in self.source.tensors else []

    def key(self, name: str) -> str | None:
        return name if name in self.source.tensors else None

    def aliases(self, name: str) -> tuple[str, ...]:
        return (name,)

    def missing(self) -> list[str]:
        return []

    def unused(self) -> list[str]:
        return []

    def pieces(self, weight: Weight) -> tuple[Piece, ...]:
        return (Piece(weight.name, weight.axis),)


def _all_plain(source: Checkpoint, control: Control) -> bool:
    """Whether the files hold all that a control may change under the names and with the shapes of the model.

    Tensors of three axes are left to the framework: some families turn theirs round as they are read, under the same name. So are models
    in which a parameter has several names, beside the head that is the embedding.
    """
    if not control.layout.one_name_each:
        return False
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
    """Finds the tensors a layout speaks of in the files, and checks that they are what was proven.

    by_framework: the model's own names are looked up in the framework in any case, so that what the files lack is known.
    """

    def __init__(self, source: Checkpoint, control: Control, by_framework: bool = False) -> None:
        self.layout = control.layout
        self.source, self.packed = unpacked(source)
        self.files = source
        text = source.section("text_config")
        kind = source.config.get("model_type"), text.get("model_type")
        if self.layout.model_type not in kind:
            raise ControlError(
                f"The control was made for structure {self.layout.hash} (a {self.layout.model_type} model, {control.model_name}), and {source.folder} is a {kind[0]} model."
            )
        proven = self.layout.n_layers + len(self.layout.skipped)
        layers = (text or source.config).get("num_hidden_layers", proven)
        if layers != proven:
            raise ControlError(
                f"The control was made for structure {self.layout.hash} of {proven} layers, and {source.folder} has {layers}."
            )
        plain = not by_framework and _all_plain(self.source, control)
        self.stored: PlainNames | StoredNames = PlainNames(self.source) if plain else StoredNames(self.source)
        head = self.layout.tied[1:] if self.layout.tied else ()
        self.pieces: dict[str, tuple[Piece, ...]] = {}
        for weight in (weight for writer in self.layout.writers for weight in writer.weights):
            others = (name for name in self.stored.aliases(weight.name) if name not in (weight.name, *head))
            # What is one parameter under several names is edited under all of them that the files know.
            more = (piece for name in others if self.stored.keys(name) for piece in self.stored.pieces(replace(weight, name=name)))
            self.pieces[weight.name] = tuple({piece.key: piece for piece in (*self._pieces(weight), *more)}.values())

    def _pieces(self, weight: Weight) -> tuple[Piece, ...]:
        weight = replace(weight, name=self._stored_as(weight.name))
        keys = self.stored.keys(weight.name)
        if not keys or any(not self._editable(key) for key in keys):
            refuse_form(self.files, keys[0] if keys else weight.name)
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

    def _stored_as(self, name: str) -> str:
        """The name under which the files hold a parameter that has several."""
        return next((alias for alias in (name, *self.stored.aliases(name)) if self.stored.keys(alias)), name)

    def unused(self) -> tuple[str, ...]:
        """Tensors of the files that are no part of the model as it is loaded, and do not belong to a packed weight either."""
        modules = {key.rpartition(".")[0] for key in self.packed}
        return tuple(key for key in self.stored.unused() if key.rpartition(".")[0] not in modules)

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
        key = self.stored.key(self._stored_as(name))
        if key is None:
            raise ControlError(f"The control was made for structure {self.layout.hash}, and {self.source.folder} has no tensor {name}.")
        return key

    def read(self, name: str) -> Numbers:
        """A whole (small) tensor, float32."""
        key = self.key(name)
        stored = self.source.tensors[key]
        if stored.dtype not in STORED:
            raise ModelError(f"{key} in {self.source.folder} is stored as {stored.dtype}, and floats are needed there; download the model again.")
        values = np.frombuffer(self.source.read(key), dtype=STORED[stored.dtype]).reshape(stored.shape)
        return widened(values, stored.dtype, np.empty(values.shape, dtype=np.float64 if stored.dtype == "F64" else np.float32)).astype(np.float32)
