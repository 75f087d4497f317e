"""Control and direction files: safetensors with a JSON header, written beside their target and renamed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array, dtype_name, library, raw
from ..errors import DataError
from ..io.hub import from_hub, hub_name
from ..io.tensors import Framework, Stored, decoded, read_tensors, write_tensors
from ..models import Layout
from ..runtime.adapter import ADAPTER, Adapter
from ..runtime.control_like import as_control
from ..runtime.states import States
from .control import Control
from .gate import Gate
from .header import AdapterEntry, Bound, ControlHeader, GateEntry, Hashed, PartEntry, StatesEntry, refuse_other_hash, refuse_site
from .older import of_format_1
from .part import Part

CONTROL = "control.safetensors"  # in the folders of runs and trainings


def save_control(control: Control, path: str | Path) -> None:
    """Write a control; read it back with `load_control`."""
    control = as_control(control)
    tensors, how = _encoded(control)
    header = {
        "kind": "control", "model": control.model_name, "layout_hash": control.layout_hash, "layout": control.layout.to_json(),
        "made_from": dict(control.made_from), **how,
    }  # fmt: skip
    write_tensors(Path(path), tensors, header)


def digest(control: Control) -> str:
    """What a control does, as a hash: the same for two controls that do the same to the same structure, whoever made them."""
    tensors, how = _encoded(control)
    hashed = hashlib.sha256(json.dumps([control.layout_hash, how], sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"{name} torch.{dtype_name(tensor)} {tuple(tensor.shape)}".encode())  # hashes that were told name dtypes as torch does
        hashed.update(raw(tensor))
    return hashed.hexdigest()[:16]


def _encoded(control: Control) -> tuple[dict[str, Array], dict[str, Any]]:
    """What a control does: its tensors by their names in a file, and what the header says of them."""
    tensors: dict[str, Array] = {}
    parts: list[dict[str, Any]] = []
    gates: list[Gate] = []
    for number, part in enumerate(control.parts):
        own = {"vectors": part.vectors, "read": part.read, "target": part.target}
        tensors |= {f"{number}.{name}": tensor for name, tensor in own.items() if tensor is not None}
        for gate in part.gates:
            if all(gate is not other for other in gates):
                tensors[f"gate {len(gates)}"] = gate.weights
                gates.append(gate)
        numbers = [next(index for index, other in enumerate(gates) if other is gate) for gate in part.gates]
        parts.append({"kind": part.kind, "dose": part.dose, "scope": part.scope.to_json(), "gates": numbers})
    how = {
        "parts": parts, "gates": [gate.to_json() for gate in gates],
        "states": [{"prompts": states.keys(), "dose": states.dose} for states in control.states],
        "adapters": [{"dose": adapter.dose, "transposed": adapter.transposed} for adapter in control.adapters],
    }  # fmt: skip
    return tensors | _states_tensors(control.states) | _adapter_tensors(control.adapters), how


@np.errstate(all="ignore")  # what is no number is told in a sentence, not by numpy's warnings
def load_control(path: str | Path) -> Control:
    """A control from its file, or from `FILE:DOSE`, which scales it; from the folder of a training or a run that holds one; or from the Hub.

    On the Hub it is `owner/name` or `owner/name@revision`, where `push` put it.
    """
    return _loaded(path, "pt")


def load_for_files(path: str | Path) -> Control:
    """The same for baking alone: its arrays are numpy's, float32 at least, so it acts in no model."""
    return _loaded(path, "np")


def _loaded(path: str | Path, framework: Framework) -> Control:
    name, _, dose = str(path).rpartition(":")
    if name and _is_number(dose):
        return _loaded(name, framework).scaled(float(dose))
    on_hub = None if Path(path).exists() else hub_name(str(path))
    if on_hub is not None:
        path = from_hub(on_hub, CONTROL)
    elif Path(path).is_dir():
        path = _in_folder(Path(path))
    stored = read_tensors(Path(path), "control", older={1: of_format_1}, framework=framework)
    header = stored.decoded(ControlHeader)
    layout = header.structure(stored.path)
    # Parts that shared a gate share it again: it is then read once.
    gates = [_gate(entry, index, layout, stored) for index, entry in enumerate(header.gates)]
    return Control(
        parts=tuple(_part(entry, number, gates, layout, stored) for number, entry in enumerate(header.parts)),
        layout=layout,
        model_name=header.model,
        made_from=header.made_from,
        states=tuple(_states(entry, number, layout, stored) for number, entry in enumerate(header.states)),
        adapters=tuple(_adapter(entry, number, layout, stored) for number, entry in enumerate(header.adapters)),
    )


def _gate(entry: GateEntry, index: int, layout: Layout, stored: Stored) -> Gate:
    refuse_site(entry.site, layout, stored.path)
    weights = stored.numbers(f"gate {index}", len(entry.biases), layout.d_model)
    plain = {name: getattr(entry, name) for name in ("site", "auroc", "hits", "false_positives", "kind", "negated", "against", "roc")}
    biases = library(weights).asarray(entry.biases, dtype=library(weights).float32)
    return Gate(weights=weights, biases=biases, **plain)


def _part(entry: PartEntry, number: int, gates: Sequence[Gate], layout: Layout, stored: Stored) -> Part:
    if any(index >= len(gates) for index in entry.gates):
        raise DataError(f"{stored.path}: part {number + 1} names a gate that the file does not hold; write it again.")
    if entry.scope.site is not None:
        refuse_site(entry.scope.site, layout, stored.path)
    if entry.scope.layers is not None and len(entry.scope.layers) != layout.n_layers:
        raise DataError(f"{stored.path}: part {number + 1} weighs {len(entry.scope.layers)} of {layout.n_layers} layers; write it again.")
    vectors = stored.numbers(f"{number}.vectors", None, layout.d_model)
    return Part(
        kind=entry.kind, vectors=vectors, dose=entry.dose, scope=entry.scope, gates=tuple(gates[index] for index in entry.gates),
        read=stored.maybe(f"{number}.read", len(vectors), layout.d_model), target=stored.maybe(f"{number}.target", len(vectors)),
    )  # fmt: skip


def _in_folder(folder: Path) -> Path:
    if (folder / CONTROL).is_file():
        return folder / CONTROL
    if (folder / ADAPTER).is_file():
        raise DataError(
            f"{folder} is an adapter that does not say what structure it is for; make it a control with demeanor control convert {folder} --like MODEL."
        )
    raise DataError(f"The folder {folder} holds no {CONTROL}; name a control file.")


def _states_tensors(states: Sequence[States]) -> dict[str, Array]:
    """Token ids and values of every prompt, under its hash."""
    tensors: dict[str, Array] = {}
    for number, one in enumerate(states):
        for key, ids, values in zip(one.keys(), one.ids, one.values):
            tensors |= {f"states {number}.{key}.ids": np.array(ids, dtype=np.int32), f"states {number}.{key}": values}
    return tensors


def _states(entry: StatesEntry, number: int, layout: Layout, stored: Stored) -> States:
    names = [f"states {number}.{key}" for key in entry.prompts]
    ids = [stored.tensor(f"{name}.ids") for name in names]
    if any(dtype_name(tokens) != "int32" or tokens.ndim != 1 for tokens in ids):
        raise DataError(f"{stored.path}: the tokens of a prompt are no list of whole numbers; write it again.")
    values = (stored.numbers(name, layout.n_layers, len(tokens), layout.d_model) for name, tokens in zip(names, ids))
    return States(tuple(tuple(tokens.tolist()) for tokens in ids), tuple(values), entry.dose)


def _adapter_tensors(adapters: Sequence[Adapter]) -> dict[str, Array]:
    """Both halves of every pair, under the name of the module they are for."""
    tensors: dict[str, Array] = {}
    for number, adapter in enumerate(adapters):
        for kind, pairs in (("low_rank", adapter.low_rank), ("prompts", adapter.prompts)):
            for name, halves in pairs.items():
                tensors |= {f"adapter {number}.{kind}.{name}.{half}": tensor for half, tensor in enumerate(halves)}
        if adapter.virtual_tokens is not None:
            tensors[f"adapter {number}.virtual_tokens"] = adapter.virtual_tokens
    return tensors


def _adapter(entry: AdapterEntry, number: int, layout: Layout, stored: Stored) -> Adapter:
    def pairs(kind: str, first: tuple[int | None, ...], second: tuple[int | None, ...]) -> dict[str, tuple[Array, Array]]:
        start = f"adapter {number}.{kind}."
        names = [key.removeprefix(start).removesuffix(".0") for key in stored.tensors if key.startswith(start) and key.endswith(".0")]
        return {name: (stored.numbers(f"{start}{name}.0", *first), stored.numbers(f"{start}{name}.1", *second)) for name in names}

    return Adapter(
        low_rank=pairs("low_rank", (None, None), (None, None)), prompts=pairs("prompts", (1, None, layout.d_model), (1,)),
        virtual_tokens=stored.maybe(f"adapter {number}.virtual_tokens", None, layout.d_model), transposed=entry.transposed, dose=entry.dose,
    )  # fmt: skip


def read_layout(path: str | Path) -> tuple[Layout, str]:
    """The structure that a control or direction file was made for, and the model's name; or that in the JSON of `inspect`."""
    path = Path(path)
    if path.suffix == ".json":
        try:
            text = path.read_text(encoding="utf-8")
            layout, stated = decoded(Layout, text, path), decoded(Hashed, text, path)
        except (DataError, UnicodeDecodeError) as error:
            raise DataError(f"{path} describes no structure ({error}); write it with demeanor inspect MODEL --json.") from error
        refuse_other_hash(layout, stated.hash, path)
        return layout, path.stem
    stored = read_tensors(path, "control", "direction")
    header = stored.decoded(Bound)
    return header.structure(path), header.model


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
