"""A control as a LoRA adapter in a folder of PEFT's: what its bake would add to the weights, beside them. algorithms.md, section 5.

An edit of rank k is a map of rank k at every weight that it changes: W' = W + M^T V W has the halves M^T and V W. So the adapter does what
the bake does, in float32 to rounding, and whatever loads PEFT's folders can mix it with others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..controls import Control
from ..errors import ControlError
from ..io.atomic import new_folder
from ..models import Session
from ..runtime.control_like import as_control
from ..structure.calls import is_linear
from .card import note
from .low_rank import Gains, Halves, ModelTensors, gains, refuse_model

NAME = "default"  # PEFT's own for the only adapter of a model


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written: the folder, the weights and biases that the adapter changes, and its largest rank. tied: whether the output head is the
    embedding, which attached the adapter leaves alone and merged it does not."""

    folder: Path
    weights: int
    biases: int
    rank: int
    tied: bool

    def __str__(self) -> str:
        biases = f" and {self.biases} biases" if self.biases else ""
        lines = [f"{self.folder}: a LoRA adapter (rank {self.rank}) on {self.weights} weights{biases}, in PEFT's form."]
        if self.tied:
            lines.append("The output head is the embedding: the adapter attached leaves the head alone, merged by PEFT it would change it; bake instead of merging.")
        return "\n".join(lines)


def export_lora(session: Session, control: Control, out: str | Path) -> Exported:
    """Write a control as a LoRA adapter to the new folder `out`.

    Embeddings are among what it changes, biases are written whole (`bias="lora_only"`), experts by PEFT's `target_parameters`. Raises
    ControlError where weights cannot do what the control does, and where PEFT has no adapter for a weight behind a writer; nothing is
    written then.
    """
    refuse_unexportable(control)
    refuse_model(session, control)
    found = gains(session, control)
    _refuse_parameters(session, found)
    halves, biases = found.weights, found.vectors
    if not halves:
        raise ControlError("This control changes no weight of the model, so there is nothing to write; use a larger dose, or a wider kernel.")
    with new_folder(Path(out)) as work:
        _write(session, halves, biases, work)
        (work / "README.md").write_text(_card(session, control), encoding="utf-8")
    rank = max(pair.rank for pair in halves.values())
    return Exported(folder=Path(out), weights=len(halves), biases=len(biases), rank=rank, tied=bool({*(session.layout.tied or ())} & halves.keys()))


def refuse_unexportable(control: Control) -> None:
    """ControlError where peft is not installed, or weights cannot do what a control does: what can be told without the model."""
    if find_spec("peft") is None:
        raise ControlError("Adapters in PEFT's form are written by peft, which the extra `train` brings: pip install 'demeanor[train]'.")
    reason = as_control(control).bakeable()
    if reason:
        raise ControlError(f"This control cannot become an adapter: {reason}.")


def _refuse_parameters(session: Session, found: Gains) -> None:
    """ControlError for a parameter that PEFT has no adapter for: a vector that is no bias of a layer."""
    for name in found.vectors:
        owner = _owner(session, name)
        if not (_is_layer(owner) and name.endswith(".bias")):
            raise ControlError(f"PEFT has no adapter for {name} of this model ({type(owner).__name__}), which the control changes; bake the control instead.")


def _owner(session: Session, name: str) -> nn.Module:
    module: nn.Module = session.model.get_submodule(name.rpartition(".")[0])
    return module


def _is_layer(module: nn.Module) -> bool:
    """Whether PEFT adapts it as a layer; parameters of other modules are adapted by their names."""
    return is_linear(module) or isinstance(module, nn.Embedding)


def _write(session: Session, halves: Mapping[str, Halves], biases: Mapping[str, Tensor], work: Path) -> None:
    from peft import get_peft_model

    with torch.device("meta"):
        model = type(session.model)(session.model.config)
    config = _config(session, halves, biases)
    try:
        peft = get_peft_model(model, config, low_cpu_mem_usage=True)
    except ValueError as error:  # a layer that it has no adapter for
        raise ControlError(f"PEFT refuses this model's layers ({' '.join(str(error).split())[:120]}); bake the control instead.") from error
    filled = {name for name, module in peft.base_model.model.named_modules() if hasattr(module, "lora_A") and _fill(name, module, halves)}
    for name, module in peft.base_model.model.named_modules() if biases else ():  # the biases of all that is adapted are saved then
        if hasattr(module, "lora_A") and getattr(module.base_layer, "bias", None) is not None:
            bias = f"{name}.bias"
            module.base_layer.bias = nn.Parameter(biases[bias] if bias in biases else ModelTensors(session).read(bias), requires_grad=False)
    if len(filled) != len(halves):
        raise ControlError(f"PEFT took {len(filled)} of {len(halves)} weights that the control changes; bake the control instead.")
    peft.save_pretrained(work, save_embedding_layers=False)


def _config(session: Session, halves: Mapping[str, Halves], biases: Mapping[str, Tensor]) -> Any:
    from peft import LoraConfig

    ranks = {name: pair.rank for name, pair in halves.items()}
    usual = max(ranks.values())
    layers = [name for name in halves if _is_layer(_owner(session, name))]
    others = {name.removesuffix(".weight") if name in layers else name: rank for name, rank in ranks.items() if rank != usual}
    return LoraConfig(
        task_type="CAUSAL_LM", base_model_name_or_path=session.model.config.name_or_path, r=usual, lora_alpha=usual, rank_pattern=others, alpha_pattern=others,
        target_modules=[name.removesuffix(".weight") for name in layers], target_parameters=[name for name in halves if name not in layers] or None,
        bias="lora_only" if biases else "none", inference_mode=True,
        fan_in_fan_out=any(not isinstance(_owner(session, name), (nn.Linear, nn.Embedding)) for name in layers),
    )  # fmt: skip


def _fill(name: str, module: Any, halves: Mapping[str, Halves]) -> bool:
    """Put the halves of its weight into an adapted module of PEFT's; whether there are any."""
    parameter = getattr(module, "parameter_name", None)
    of = f"{name.replace('.base_layer', '')}.{parameter or 'weight'}"
    pair = halves.get(of)
    if pair is None:
        return False
    experts, rank, _ = pair.a.shape
    if NAME in module.lora_embedding_A:
        module.lora_embedding_A[NAME] = nn.Parameter(pair.a[0].contiguous(), requires_grad=False)
        module.lora_embedding_B[NAME] = nn.Parameter(pair.b[0].contiguous(), requires_grad=False)
        return True
    a, b = pair.a, pair.b
    if parameter is not None:  # which of its axes are the outputs PEFT does not ask
        rows_are_outputs = module._did_swap_in_out_features if experts > 1 else True
        a, b = (a, b) if rows_are_outputs == pair.outputs_first else (b.mT, a.mT)
    a, b = a.reshape(experts * rank, -1), b.permute(1, 2, 0).reshape(-1, rank * experts)
    module.lora_A[NAME].weight = nn.Parameter(a.contiguous(), requires_grad=False)
    module.lora_B[NAME].weight = nn.Parameter(b.contiguous(), requires_grad=False)
    return True


def _card(session: Session, control: Control) -> str:
    return f"---\nlibrary_name: peft\nbase_model: {json.dumps(session.name)}\n---\n\n{note(control, session.name, 'adapter')}"
