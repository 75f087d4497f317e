"""What a control adds to a loaded model's weights, as low-rank maps: W' = W + M^T V W has the halves M^T and V W. algorithms.md, section 5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..controls import Control
from ..errors import ControlError
from ..models import Session
from ..runtime.adapter import ADAPTER
from ..runtime.adapters import Adapted
from ..structure.layout import Layout, same_weights
from ..structure.stored_names import Piece
from .changes import Change, changes
from .weights import refuse_other


class ModelTensors:
    """A loaded model's parameters, by the names that its layout has for them."""

    packed: Mapping[str, Any] = {}

    def __init__(self, session: Session) -> None:
        self.layout: Layout = session.layout
        self._model = session.model

    def read(self, name: str) -> Tensor:
        parameter: Tensor = self._model.get_parameter(name)
        return parameter.detach().float().cpu()

    def of(self, name: str, axis: int) -> tuple[Piece, ...]:
        return (Piece(name, axis),)

    def linear(self, module: str, out: int, into: int, transposed: bool) -> str:
        return f"{module}.weight"


@dataclass(frozen=True)
class Halves:
    """a [expert, rank, in] and b [expert, out, rank]: what a weight gains is b a. One expert where there are none.

    outputs_first: whether the weight is stored as [out, in]. basis [k, out]: the directions along which the change is to be exact.
    """

    a: Tensor
    b: Tensor
    outputs_first: bool
    basis: Tensor

    @property
    def rank(self) -> int:
        return self.a.shape[1]

    def gain(self, shape: torch.Size) -> Tensor:
        """What is added to the weight, in its own shape."""
        gained = self.b @ self.a
        return (gained if self.outputs_first else gained.mT).reshape(shape)


@dataclass(frozen=True)
class Gains:
    """weights: the halves of every weight that is changed; vectors: every bias as it becomes; both by the names of parameters."""

    weights: dict[str, Halves]
    vectors: dict[str, Tensor]


def refuse_model(session: Session, control: Control) -> None:
    """ControlError for a model of another structure, and for one whose weights an adapter cannot be made of."""
    session.interventions(control)
    if control.adapters:
        refuse_other(session.name, control.model_name, "The adapter", same_weights(control.weights, session.layout.weights))
    for adapter in control.adapters:
        Adapted(session.model, adapter)  # has every module that the adapter changes
    if getattr(session.model, "hf_quantizer", None) is not None:
        raise ControlError(f"{session.name} is loaded in few bits, and an adapter is made of its weights; load an unquantised copy.")
    if (Path(session.name) / ADAPTER).is_file():
        raise ControlError(f"{session.name} is an adapter itself, and another one beside it would be for other weights; bake it first, and name the folder.")


def gains(session: Session, control: Control) -> Gains:
    """What a control that weights can do changes in a model's parameters, float32."""
    tensors = ModelTensors(session)
    found = Gains({}, {})
    for name, change in changes(control, tensors).items():
        value = tensors.read(name)
        if value.dim() > 1:
            found.weights[name] = _of(value, change)
        else:
            found.vectors[name] = value + (value @ change.edit.V.mT) @ change.edit.M
    return found


def _of(weight: Tensor, change: Change) -> Halves:
    """Halves of what a weight gains, its outputs along the change's axis."""
    stack = weight if weight.dim() == 3 else weight[None]
    outputs_first = (change.axis + stack.dim() - weight.dim()) % 3 == 1
    w = stack if outputs_first else stack.mT  # [expert, out, in]
    v, m = change.edit.V, change.edit.M
    if change.low_rank is None:
        return Halves(v @ w, m.mT.expand(len(w), -1, -1), outputs_first, change.basis)
    left, right = change.low_rank.left, change.low_rank.right
    return Halves(torch.cat([right[None], v @ w + (v @ left) @ right], 1), torch.cat([left, m.mT], 1)[None], outputs_first, change.basis)
