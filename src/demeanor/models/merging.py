"""An adapter put into the weights of the model that it was made for, so that the model does what PEFT would compute beside it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError
from ..io.checkpoint import Stored, read_header
from ..runtime.adapter import ADAPTER, ADAPTER_WEIGHTS
from ..runtime.adapters import VIRTUAL_TOKENS
from ..structure.fetched import fetched

OF_PEFT = "base_model.model."  # before every name in an adapter's file
WRAPPED = ("base_layer", "original_module")  # what PEFT calls a layer that it has put its own around


def merged_into(model: Any, folder: Path, name: str, base: str) -> Any:
    """`model`, the one in the folder `base`, with the adapter in `folder` in its weights.

    name: what the user called the adapter. An adapter that was trained after tokens were added brings its embedding, and the model's
    grows to it. Where an adapter changes one of two tied tensors, they are tied no more.
    Raises ModelError for an adapter that weights cannot take in, or that is not what its configuration says.
    """
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{folder} has no {ADAPTER_WEIGHTS}; save the adapter again.")
    held = read_header(folder / ADAPTER_WEIGHTS)
    if f"{OF_PEFT}{VIRTUAL_TOKENS}.weight" in held:
        raise ModelError(f"{name} opens prompts with embeddings, which weights cannot take in; put it in force with --control.")
    from peft import PeftModel, get_peft_model_state_dict

    def adapt() -> Any:
        _resize(model, held, name)
        return PeftModel.from_pretrained(model, str(folder))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they would tell is checked below
        adapted = fetched(name, adapt)
        adapted.peft_config["default"].base_model_name_or_path = base  # PEFT would look for our names on the Hub
        if not hasattr(adapted.base_model, "merge_and_unload"):
            raise ModelError(
                f"{name} is an adapter that cannot be merged into weights; put it in force with --control, or use one of the LoRA kind."
            )
        needed, known = (set(get_peft_model_state_dict(adapted, save_embedding_layers=also)) for also in (False, True))
        _refuse_differing(set(held), needed, known | set(adapted.state_dict()), name)
        _untie(adapted.base_model.model)
        merged = fetched(name, adapted.merge_and_unload)
    _tie_what_is_the_same(merged)
    return merged


def _refuse_differing(held: set[str], needed: set[str], known: set[str], name: str) -> None:
    """ModelError where the file lacks tensors of the adapter, or holds others than those and what may be saved beside them (embeddings)."""
    differing = sorted((needed - held) | (held - known))
    if differing:
        where = "has no" if differing[0] not in held else "holds"
        raise ModelError(f"{name} {where} tensor {differing[0]}, unlike what its {ADAPTER} says; save the adapter again.")


def _resize(model: Any, held: Mapping[str, Stored], name: str) -> None:
    """Give the model as many tokens as the embedding and the head in an adapter's file have.

    Raises ModelError where the file holds one of the two for added tokens and the model needs both: the other would be made up.
    """
    names = {module: key for key, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    modules = [module for module in (embedding, head) if module is not None]
    rows = [set(_rows(held, f"{OF_PEFT}{names[module]}.")) for module in modules]
    counts = set().union(*rows)
    if len(counts) != 1 or counts == {embedding.num_embeddings}:
        return  # nothing to do, or sizes that PEFT refuses with their names
    tied = head is not None and head.weight is embedding.weight
    lacking = next((names[module] for module, own in zip(modules, rows) if not own and not tied), None)
    if lacking is not None:
        raise ModelError(
            f"{name} was trained on {max(counts)} tokens, and the model it was made for has {embedding.num_embeddings}, but its file has no {lacking} for the others; save the adapter with save_embedding_layers=True."
        )
    model.resize_token_embeddings(counts.pop(), mean_resizing=False)


def _rows(held: Mapping[str, Stored], prefix: str) -> Iterator[int]:
    """How many tokens the tensors of a module have that are kept per token."""
    for key, stored in held.items():
        part = key.removeprefix(prefix) if key.startswith(prefix) else ""
        if part.startswith("lora_embedding_A"):
            yield stored.shape[-1]
        elif part.startswith("lora_B") or (part.endswith("weight") and "lora_" not in part):
            yield stored.shape[0]


def _untie(model: nn.Module) -> None:
    """A weight of its own for every module that PEFT has wrapped and that shares its weight with others: merging writes into it."""
    holders: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append((name, module, key))
    for shared in holders.values():
        if len(shared) > 1 and any(name.endswith(WRAPPED) for name, _, _ in shared):
            for _, module, key in shared[1:]:
                parameter = module._parameters[key]
                assert parameter is not None
                module._parameters[key] = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)


def _tie_what_is_the_same(model: Any) -> None:
    """Tie embedding and head again where they are still equal; elsewhere the configuration says that they are not tied."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or embedding.weight is head.weight or not model.config.get_text_config().tie_word_embeddings:
        return
    if _equal(embedding.weight, head.weight):
        head.weight = embedding.weight
        return
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
    model.tie_weights()  # looks the tied names up again, by which weights are left out of files


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.device == other.device and bool((one == other).all())
