"""A control in files of llama.cpp's that are made for one GGUF file: the whole model edited, or a LoRA adapter that goes beside it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..controls import Control
from ..errors import ControlError, ModelError
from ..io.gguf_writing import EMBEDDING, HEAD, Values, copy_to_patch, write_adapter, write_copy
from ..models import Session
from ..models.gguf import gguf_file
from ..models.naming import resolve
from ..progress import track, warn
from ..runtime.control_like import as_control
from .gguf_blocks import packed_q8_0
from .gguf_in_place import Rounding, Roundings, in_blocks, patch_matrix, patch_vector, refuse_types
from .low_rank import Gains, gains, refuse_model
from .patch import NotFinite, PutBack

EditedAs = Literal["f32", "f16", "q8_0", "stored"]
LARGEST = 127 * torch.finfo(torch.float16).max  # of what Q8_0 holds
SPARED = "leave the embedding out of the control (a kernel without the first layer, or a scope with a role)"
STORED: EditedAs = "stored"
TYPES = {"f32": torch.float32, "f16": torch.float16, "q8_0": torch.float32}  # the last: of what the file does not have in few bits


@dataclass(frozen=True, kw_only=True)
class ExportedGguf:
    """What was written: the file, the tensors in it that are edited, and how those are stored. head: whether an output head that was the embedding
    became a tensor of its own. packed: how many of the edited tensors are in Q8_0 (as stored: in any type of few bits); left: the share of what the edit takes out (or
    moves) along its directions that rounding put back in these (as stored: in F16 and BF16 too; biases are never in it), 0 to 1; None where there are none, or where it has more than 16
    directions, which are rounded to the nearest. As stored: worst_left, the same in the tensor with most of it; off, the distance from the exact edit in units of what that moves, root mean square
    over these tensors; beyond, how many of their values are cut off, because they do not fit the scales."""

    file: Path
    tensors: int
    edited_as: EditedAs
    head: bool
    packed: int = 0
    left: float | None = None
    worst_left: float | None = None
    off: float | None = None
    beyond: int = 0

    def __str__(self) -> str:
        head = " The output head, which was the embedding, is a tensor of its own in it." if self.head else ""
        kinds = {"q8_0": f"{self.packed} in Q8_0, {self.tensors - self.packed} in F32", "stored": "each in the type that it had"}.get(self.edited_as, self.edited_as.upper())
        to = " to Q8_0" if self.edited_as == "q8_0" else ""
        left = "" if self.left is None else f" Rounding{to} put back {self.left:.3%} of the edit{'' if self.worst_left is None else f', {self.worst_left:.3%} in the worst tensor'}."
        off = "" if self.off is None else f" It moved weights by {self.off:.2g} times what the edit does."
        beyond = f" {self.beyond} values do not fit their scales." if self.beyond else ""
        return f"{self.file}: the whole model for llama.cpp, {self.tensors} tensors edited ({kinds}), all others as they were.{left}{off}{beyond}{head}"


@dataclass(frozen=True, kw_only=True)
class ExportedAdapter:
    """What was written: the file, the weights that the adapter changes, and its largest rank."""

    file: Path
    weights: int
    rank: int

    def __str__(self) -> str:
        return f"{self.file}: a LoRA adapter of llama.cpp (rank {self.rank}) on {self.weights} weights (--lora {self.file})."


def export_gguf(session: Session, control: Control, path: str | Path, edited_as: EditedAs = "f32") -> ExportedGguf:
    """Write the GGUF file that a session was loaded from, with a control in its weights, as the new file `path`.

    Edited tensors are stored as float32, or float16, which halves them and rounds the edit too. With q8_0 those that the file has in few bits
    become Q8_0, so rounded that the edit is kept, and others float32. As stored every tensor stays in the type, with the scales, that it has in the file; a warning tells
    where rounding then moves much beside the edit. Tokenizer, template and all other tensors are the file's own, bit for bit.
    Raises ControlError where weights cannot do what the control does, ModelError for a model that is no GGUF file.
    """
    if edited_as not in (*TYPES, STORED):
        raise ControlError(f"Edited tensors are stored as {', '.join(TYPES)} or {STORED}, not as {edited_as!r}.")
    values, found = _prepared(session, control)
    if edited_as == STORED:
        return _in_place(session, values, found, Path(path))
    places = dict(_places(session, values, [*found.weights, *found.vectors]))
    packed = {place.name: _packed(name, place, found) for name, place in places.items() if edited_as == "q8_0" and values.in_few_bits(place.name)}
    exchanged = {place.name: packed[place.name][0] if place.name in packed else _edited(name, place, found, edited_as) for name, place in places.items()}
    added = _head_of_its_own(values, exchanged)
    write_copy(values, Path(path), exchanged, added)
    left = sum((put_back for _, put_back in packed.values()), PutBack()).share
    return ExportedGguf(file=Path(path), tensors=len(exchanged), edited_as=edited_as, head=bool(added), packed=len(packed), left=left)


def _in_place(session: Session, values: Values, found: Gains, path: Path) -> ExportedGguf:
    """A copy of the file in which every edited tensor has other codes, and is otherwise as it was."""
    places = {name: (place.name, place.turned) for name, place in _places(session, values, [*found.weights, *found.vectors])}  # one by one: their values are not kept
    refuse_types({name: stored for name, (stored, _) in places.items()}, values.stored)
    added = _head_of_its_own(values, [stored for stored, _ in places.values()])
    roundings: dict[str, Rounding] = {}
    with values.path.open("rb", buffering=0) as source, copy_to_patch(values, path, added) as (target, starts):
        for name, (stored, turned) in track(places.items(), "Rounding", len(places)):
            with _told(name, values, stored):
                if name in found.vectors:
                    patch_vector(target, values.stored[stored], starts[stored], found.vectors[name])
                    continue
                halves = found.weights[name]
                one = patch_matrix(source.fileno(), target, values.stored[stored], starts[stored], halves, halves.outputs_first != turned)
                if one is not None:
                    roundings[name] = one
    done = Roundings(roundings)
    for sentence in done.warnings():
        warn(sentence)
    return ExportedGguf(
        file=path,
        tensors=len(places),
        edited_as=STORED,
        head=bool(added),
        packed=sum(in_blocks(values.stored[places[name][0]]) for name in places),
        left=done.left,
        worst_left=None if done.worst is None else done.worst[1],
        off=done.off,
        beyond=done.beyond,
    )


@contextmanager
def _told(parameter: str, file: Values, stored: str) -> Iterator[None]:
    """A value that is infinite or no number, as one sentence: the file's own, or made by the edit."""
    try:
        yield
    except NotFinite as error:
        if error.in_source:
            raise ModelError(f"{file.path} holds values that are not finite in {stored}; download it again.") from error
        raise ControlError(f"The edit makes values in {parameter} that are too large for {file.stored[stored].dtype}, so nothing was written; use a smaller dose.") from error


def _head_of_its_own(values: Values, edited: Collection[str]) -> dict[str, str]:
    """The output head as a tensor that is to be added, with the one that it is a copy of, where it is the embedding and that is edited. ControlError where llama.cpp reads none."""
    if HEAD in values.tensors or EMBEDDING not in edited:
        return {}
    if not values.may_have_head():
        raise ControlError(
            f"llama.cpp reads no output head beside the embedding of {values.architecture} models, and the control edits it; {SPARED}."
        )
    return {HEAD: EMBEDDING}


def export_gguf_adapter(session: Session, control: Control, path: str | Path) -> ExportedAdapter:
    """Write a control as a LoRA adapter of llama.cpp, for the GGUF file that a session was loaded from, as the new file `path`.

    Raises ControlError where weights cannot do what the control does, and for what llama.cpp has no adapter for: biases, experts, an embedding that is also
    the output head. ModelError for a model that is no GGUF file.
    """
    values, found = _prepared(session, control)
    if found.vectors:
        raise ControlError(f"llama.cpp has no adapter for {next(iter(found.vectors))}, which the control changes; export the control as gguf.")
    places = dict(_places(session, values, found.weights))
    many = next((name for name, halves in found.weights.items() if len(halves.a) > 1), None)
    if many is not None:
        raise ControlError(f"{many} holds the weights of {len(found.weights[many].a)} experts, for which no adapter of llama.cpp is written; export the control as gguf.")
    if HEAD not in values.tensors and any(place.name == EMBEDDING for place in places.values()):
        raise ControlError(
            f"llama.cpp has no adapter for an embedding that is also the output head, and the control changes it; export the control as gguf, or {SPARED}."
        )
    write_adapter(Path(path), values.architecture, {place.name: (found.weights[name].a[0], found.weights[name].b[0]) for name, place in places.items()})
    return ExportedAdapter(file=Path(path), weights=len(places), rank=max(halves.rank for halves in found.weights.values()))


def refuse_no_gguf(model: str) -> None:
    """ModelError for a MODEL that is no GGUF file, which says how one is made of it."""
    if not resolve(model).gguf:
        raise ModelError(
            f"{model} is no GGUF file; make one of it with llama.cpp's own converter (python convert_hf_to_gguf.py FOLDER --outfile FILE.gguf) and name that, or bake the control and convert what is written."
        )


def refuse_not_weights(control: Control) -> None:
    """ControlError where weights cannot do what a control does."""
    reason = as_control(control).bakeable()
    if reason:
        raise ControlError(f"This control cannot be written into weights: {reason}.")


def _prepared(session: Session, control: Control) -> tuple[Values, Gains]:
    """The tensors of the session's file, and what the control changes in the session's parameters."""
    refuse_not_weights(control)
    refuse_no_gguf(session.name)
    refuse_model(session, control)
    if session.dtype_name != "float32":  # an edit of what is rounded would leave some of the direction in what is not
        raise ModelError(f"{session.name} is loaded as {session.dtype_name}, and its weights are edited as float32; load it without --dtype.")
    found = gains(session, control)
    if not found.weights:
        raise ControlError("This control changes no weight of the model, so there is nothing to write; use a larger dose, or a wider kernel.")
    return Values(gguf_file(session.name, resolve(session.name))), found


@dataclass(frozen=True)
class _Place:
    """A parameter in the file: its name there, its values, and whether its last two axes are exchanged there."""

    name: str
    values: Tensor
    turned: bool


def _places(session: Session, file: Values, parameters: Collection[str]) -> Iterator[tuple[str, _Place]]:
    """Where every parameter lies in the file. ControlError for one that the file holds otherwise than the session does: an edit of it would be another."""
    stored = file.named(parameters, session.layout.n_layers)
    yield from ((name, _place(session, file, name, stored.get(name))) for name in parameters)


def _place(session: Session, file: Values, name: str, stored: str | None) -> _Place:
    if stored is None:
        raise ControlError(f"{file.path} holds no tensor for {name}, which the control changes; bake the control, and convert what is written.")
    parameter, values = session.model.get_parameter(name).detach().cpu(), torch.from_numpy(file.read(stored))
    for turned in (False, True) if values.dim() > 1 else (False,):
        held = values.mT if turned else values
        if held.shape == parameter.shape and torch.equal(held.to(parameter.dtype), parameter):
            return _Place(stored, values, turned)
    raise ControlError(f"{file.path} holds {name} in another order than the model computes with, so no edit of it is written; bake the control, and convert what is written.")


def _edited(name: str, place: _Place, found: Gains, edited_as: EditedAs) -> np.ndarray[Any, Any]:
    """A tensor as it becomes, in the shape that it has in the file; vectors are float32 there whatever matrices are."""
    if name in found.vectors:
        return found.vectors[name].numpy()
    values = _exact(name, place, found).to(TYPES[edited_as])
    if not values.isfinite().all():
        kind = "F16" if TYPES[edited_as] is torch.float16 else "F32"
        raise ControlError(f"The edit makes values in {name} that are too large for {kind}, so nothing was written; write it as f32, or use a smaller dose.")
    return values.contiguous().numpy()


def _exact(name: str, place: _Place, found: Gains) -> Tensor:
    """A matrix as it is to be, in the shape that it has in the file."""
    shape = place.values.mT.shape if place.turned else place.values.shape
    gain = found.weights[name].gain(shape)
    return place.values + (gain.mT if place.turned else gain)


def _packed(name: str, place: _Place, found: Gains) -> tuple[np.ndarray[Any, Any], PutBack]:
    """A matrix as it becomes, in the blocks of Q8_0, and what rounding did."""
    halves, exact = found.weights[name], _exact(name, place, found)
    if not bool((exact.abs() < LARGEST).all()):
        raise ControlError(f"The edit makes values in {name} that are too large for Q8_0, so nothing was written; write it as f32, or use a smaller dose.")
    return packed_q8_0(place.values, exact, halves.basis, halves.outputs_first != place.turned)
