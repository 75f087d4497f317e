"""The model that learns: every weight, or a LoRA adapter on weights that stay as they are, quantised or not."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..errors import DataError, ModelError
from ..io.json_files import write_json
from ..models import Loading
from ..models.loading import device_named, read_for_training, save_whole
from ..models.naming import ORGANISM, is_adapter, resolve
from ..runtime.adapter import ADAPTER
from .plans import Training

NEEDED = ("trl", "peft", "accelerate")


def check_extras() -> None:
    """DataError, naming the extra, where what training takes is not installed."""
    missing = next((name for name in NEEDED if find_spec(name) is None), None)
    if missing is not None:
        raise DataError(f"Training takes {missing}, which the extra `train` brings: pip install 'demeanor[train]'.")


@dataclass(frozen=True)
class Learner:
    """A model to train, its tokenizer, and the adapter that is put on it (None where every weight is trained)."""

    model: Any
    tokenizer: Any
    adapter: Any


def place_of(plan: Training) -> torch.device:
    """The device of this process: several of them share out the GPUs."""
    place = device_named(plan.device)
    if place.type == "cuda" and place.index is None and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return place


def placed(plan: Training) -> Loading:
    """How this process loads a model that is measured: unpacked, on its own device unless a device map says otherwise."""
    device = {} if plan.device_map is not None else {"device": str(place_of(plan))}
    return plan.loading.model_copy(update={**device, "load_in_4bit": False, "load_in_8bit": False})


def check_model(plan: Training) -> None:
    """DataError where an adapter would be put on an adapter, which could not be loaded again."""
    if is_adapter(plan.model) and not (plan.every_weight or plan.merge):
        raise DataError(
            f"{plan.model} is an adapter, and a second one on top of it could not be loaded; add --merge, or train with --full."
        )


def learner(plan: Training) -> Learner:
    """The model of a plan, ready to be trained."""
    place = place_of(plan)
    dtype = plan.dtype or ("float32" if plan.every_weight or place.type == "cpu" else None)
    packed = {"load_in_4bit": plan.load_in_4bit, "load_in_8bit": plan.load_in_8bit}
    model, tokenizer = read_for_training(plan.model, placed(plan).model_copy(update={"dtype": dtype, **packed}))
    if plan.every_weight:
        return Learner(model, tokenizer, None)
    from peft import LoraConfig, prepare_model_for_kbit_training

    if plan.quantized is not None:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=plan.gradient_checkpointing)
    # PEFT knows which linear layers are not the output head, of any family.
    adapter = LoraConfig(r=plan.lora_r, lora_alpha=2 * plan.lora_r, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    return Learner(model, tokenizer, adapter)


def finish(plan: Training, trained: Path, tokenizer: Any, work: Path) -> None:
    """Put what the trainer saved into the folder `work`, as a model or an adapter that `load` takes."""
    for path in trained.iterdir():
        if path.suffix != ".bin" and path.is_file() and path.name != "README.md":  # pickled arguments, and TRL's own card
            os.replace(path, work / path.name)
    tokenizer.save_pretrained(work)
    if (work / ADAPTER).is_file():
        _name_base(plan.model, work / ADAPTER)
    if plan.merge:
        merged = work / "merged"
        save_whole(str(work), merged, plan.trust_remote_code)
        for path in work.iterdir():
            if path.is_file():
                path.unlink()
        for path in merged.iterdir():
            os.replace(path, work / path.name)
        merged.rmdir()


def _name_base(model: str, config: Path) -> None:
    """Write the base's name so that the adapter finds it again: the embedded model and the Hub's by name, folders in full."""
    values = json.loads(config.read_text(encoding="utf-8"))
    place = resolve(model)
    base, revision = place.where, place.revision
    if model == ORGANISM:
        base = model
    elif Path(base).exists():
        base = str(Path(base).resolve())
    elif place.gguf:
        base, revision = model, None
    write_json(config, {**values, "base_model_name_or_path": base, "revision": revision})


def refuse_trackers(names: tuple[str, ...]) -> None:
    """DataError for a tracker that transformers does not know or that is not installed."""
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise DataError(f"{name!r} is not a tracker; the trackers are {', '.join(sorted(INTEGRATION_TO_CALLBACK))}.")
        if name not in get_available_reporting_integrations():
            raise DataError(f"The tracker {name} is not installed, or not set up; install its package, or leave --report-to out.")


def parameters(model: Any) -> tuple[int, int]:
    """How many are trained, of how many."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained = sum(count for count, free in counts if free)
    if not trained:
        raise ModelError("No weight of this model can be trained; use --full, or an unquantised copy.")
    return trained, sum(count for count, _ in counts)
