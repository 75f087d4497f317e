"""Which tensors of a checkpoint hold a parameter, and on which axis they are edited."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..controls import Control
from ..errors import ControlError, ModelError
from ..io.checkpoint import Checkpoint
from ..structure.layout import Weight
from ..structure.stored_names import Piece, StoredNames

EDITABLE = ("F64", "F32", "F16", "BF16")


class FileTensors:
    """Finds the tensors a layout speaks of in the files, and checks that they are what was proven.

    before: the names in the files that the control was made for, where `source` is a copy of them in which nothing is tied any more.
    """

    def __init__(self, source: Checkpoint, control: Control, before: StoredNames | None = None) -> None:
        self.source, self.layout = source, control.layout
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
        self.stored = StoredNames(source)
        tied = before or self.stored
        head = self.layout.tied[1:] if self.layout.tied else ()
        self.pieces: dict[str, tuple[Piece, ...]] = {}
        for weight in (weight for writer in self.layout.writers for weight in writer.weights):
            others = (name for name in tied.aliases(weight.name) if name not in (weight.name, *head))
            # What was one parameter under several names is edited under all of them that the files know.
            more = (piece for name in others for piece in self.stored.pieces(replace(weight, name=name)))
            self.pieces[weight.name] = tuple({piece.key: piece for piece in (*self._pieces(weight), *more)}.values())

    def _pieces(self, weight: Weight) -> tuple[Piece, ...]:
        weight = replace(weight, name=self._stored_as(weight.name))
        keys = self.stored.keys(weight.name)
        packed = self.source.section("quantization_config").get("quant_method")
        if packed:
            raise ModelError(
                f"{self.source.folder} holds its weights as {packed}, which cannot be edited exactly; use an unquantised copy."
            )
        if not keys:
            raise ControlError(
                f"The control was made for structure {self.layout.hash}, and {self.source.folder} has no tensor {weight.name}."
            )
        stored = self.source.tensors[keys[0]]
        if any(self.source.tensors[key].dtype not in EDITABLE for key in keys):
            raise ModelError(
                f"{weight.name} in {self.source.folder} is stored as {stored.dtype}, which cannot be edited exactly; use an unquantised copy."
            )
        pieces = self.stored.pieces(weight)
        if not pieces:
            raise ControlError(
                f"The control was made for structure {self.layout.hash}, in which {weight.name} is {list(weight.shape)}; in {self.source.folder} it is {list(stored.shape)}."
            )
        return pieces

    def _stored_as(self, name: str) -> str:
        """The name under which the files hold a parameter that has several."""
        return next((alias for alias in (name, *self.stored.aliases(name)) if self.stored.keys(alias)), name)

    def of(self, name: str, axis: int) -> tuple[Piece, ...]:
        """The file tensors to edit for a parameter of the layout: a weight behind a writer, or a norm's bias."""
        return self.pieces[name] if name in self.pieces else (Piece(self.key(name), axis),)

    def linear(self, module: str, out: int, into: int, transposed: bool) -> str:
        """The file tensor that is a linear layer's weight."""
        key = self.stored.key(f"{module}.weight")
        shape = (into, out) if transposed else (out, into)
        if key is None or self.source.tensors[key].shape != shape or self.source.tensors[key].dtype not in EDITABLE:
            raise ControlError(
                f"The adapter changes {module}, and {self.source.folder} does not hold its weight as one unquantised tensor {list(shape)}; it cannot be baked into these files."
            )
        return key

    def key(self, name: str) -> str:
        key = self.stored.key(self._stored_as(name))
        if key is None:
            raise ControlError(f"The control was made for structure {self.layout.hash}, and {self.source.folder} has no tensor {name}.")
        return key

    def read(self, name: str) -> Tensor:
        """A whole (small) tensor, float32."""
        return self.source.read(self.key(name)).float()
