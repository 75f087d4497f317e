"""Control and direction files: safetensors with a JSON header, written beside their target and renamed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ControlError, DataError
from ..io.tensors import read_tensors, write_tensors
from ..models import Layout
from ..runtime.adapters import ADAPTER, Adapter
from ..runtime.prompt_states import States
from ..runtime.rows import as_control
from .control import Control
from .gate import Gate
from .part import Part
from .scope import Scope

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
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()[:16]


def _encoded(control: Control) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a control does: its tensors by their names in a file, and what the header says of them."""
    tensors: dict[str, Tensor] = {}
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


def load_control(path: str | Path) -> Control:
    """A control from its file, or from `FILE:DOSE`, which scales it; from the folder of a training or a run that holds one."""
    name, _, dose = str(path).rpartition(":")
    if name and _is_number(dose):
        return load_control(name).scaled(float(dose))
    if Path(path).is_dir():
        path = _in_folder(Path(path))
    tensors, header = read_tensors(Path(path), "control")
    # Parts that shared a gate share it again: it is then read once.
    gates = [Gate.from_json(entry, tensors[f"gate {index}"]) for index, entry in enumerate(header["gates"])]
    parts = [
        Part(
            kind=entry["kind"], vectors=tensors[f"{number}.vectors"], dose=entry["dose"], scope=Scope.from_json(entry["scope"]),
            gates=tuple(gates[index] for index in entry["gates"]), read=tensors.get(f"{number}.read"), target=tensors.get(f"{number}.target"),
        )
        for number, entry in enumerate(header["parts"])
    ]  # fmt: skip
    layout = Layout.from_json(header["layout"])
    if layout.hash != header["layout_hash"]:
        raise ControlError(
            f"{path} names structure {header['layout_hash']} but describes {layout.hash}; it was changed by hand or damaged."
        )
    states = tuple(_states(entry, number, tensors) for number, entry in enumerate(header["states"]))
    adapters = tuple(_adapter(entry, number, tensors) for number, entry in enumerate(header["adapters"]))
    return Control(
        parts=tuple(parts), layout=layout, model_name=header["model"], made_from=header["made_from"], states=states, adapters=adapters
    )


def _in_folder(folder: Path) -> Path:
    if (folder / CONTROL).is_file():
        return folder / CONTROL
    if (folder / ADAPTER).is_file():
        raise DataError(
            f"{folder} is an adapter that does not say what structure it is for; make it a control with demeanor control convert {folder} --like MODEL."
        )
    raise DataError(f"The folder {folder} holds no {CONTROL}; name a control file.")


def _states_tensors(states: Sequence[States]) -> dict[str, Tensor]:
    """Token ids and values of every prompt, under its hash."""
    tensors: dict[str, Tensor] = {}
    for number, one in enumerate(states):
        for key, ids, values in zip(one.keys(), one.ids, one.values):
            tensors |= {f"states {number}.{key}.ids": torch.tensor(ids, dtype=torch.int32), f"states {number}.{key}": values}
    return tensors


def _states(entry: Mapping[str, Any], number: int, tensors: Mapping[str, Tensor]) -> States:
    names = [f"states {number}.{key}" for key in entry["prompts"]]
    return States(tuple(tuple(tensors[f"{name}.ids"].tolist()) for name in names), tuple(tensors[name] for name in names), entry["dose"])


def _adapter_tensors(adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """Both halves of every pair, under the name of the module they are for."""
    tensors: dict[str, Tensor] = {}
    for number, adapter in enumerate(adapters):
        for kind, pairs in (("low_rank", adapter.low_rank), ("prompts", adapter.prompts)):
            for name, halves in pairs.items():
                tensors |= {f"adapter {number}.{kind}.{name}.{half}": tensor for half, tensor in enumerate(halves)}
        if adapter.virtual_tokens is not None:
            tensors[f"adapter {number}.virtual_tokens"] = adapter.virtual_tokens
    return tensors


def _adapter(entry: Mapping[str, Any], number: int, tensors: Mapping[str, Tensor]) -> Adapter:
    def pairs(kind: str) -> dict[str, tuple[Tensor, Tensor]]:
        start = f"adapter {number}.{kind}."
        names = [key.removeprefix(start).removesuffix(".0") for key in tensors if key.startswith(start) and key.endswith(".0")]
        return {name: (tensors[f"{start}{name}.0"], tensors[f"{start}{name}.1"]) for name in names}

    opening = tensors.get(f"adapter {number}.virtual_tokens")
    return Adapter(
        low_rank=pairs("low_rank"), prompts=pairs("prompts"), virtual_tokens=opening, transposed=entry["transposed"], dose=entry["dose"]
    )


def read_layout(path: str | Path) -> tuple[Layout, str]:
    """The structure that a control or direction file was made for, and the model's name; or that in the JSON of `inspect`."""
    path = Path(path)
    if path.suffix == ".json":
        try:
            return Layout.from_json(json.loads(path.read_text(encoding="utf-8"))), path.stem
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} describes no structure; write it with demeanor inspect MODEL --json.") from error
    _, header = read_tensors(path, "control", "direction")
    return Layout.from_json(header["layout"]), header["model"]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
