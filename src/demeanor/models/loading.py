"""Models by name: the embedded one, a folder, a Hub id, or an adapter for one of these.

This and the other files of this package are the only ones that know transformers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from ..errors import ModelError
from ..io.checkpoint import open_checkpoint, read_header, read_json
from ..progress import muted, say
from ..runtime.adapters import ADAPTER, ADAPTER_WEIGHTS, VIRTUAL_TOKENS
from .session import ORGANISM_MARK, REPLY_TOKENS, Session

ORGANISM = "organism"
Quantized = Literal["4bit", "8bit"]


def load(
    name: str | Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    quantized: Quantized | None = None,
    reply_tokens: int = REPLY_TOKENS,
) -> Session:
    """A session for `organism`, a model folder, a Hub id (`owner/model`, `owner/model@revision`) or a PEFT adapter folder.

    device: "cpu", "cuda", ...; the GPU when there is one. dtype: "float32", "bfloat16", ...; as stored. quantized:
    "4bit" or "8bit" holds the linear weights so (bitsandbytes, the extra `quant`). reply_tokens: how long replies may get
    that are judged. Raises ModelError when there is no such model or its files are damaged, AccountingError when its
    residual stream cannot be accounted for.
    """
    name = str(name)
    place = device_named(device)
    model, tokenizer = _read(name, place, _dtype(dtype), quantized)
    if model.config.get_text_config() is not model.config:
        say(f"{name} takes more than text; what is proven, measured and edited is what it does with text.")
    return Session(model, tokenizer, name, reply_tokens)


def read_for_training(name: str, *, place: torch.device, dtype: str | None, quantized: Quantized | None) -> tuple[Any, Any]:
    """The model of a MODEL argument, its weights free to change, and its tokenizer, which can pad."""
    model, tokenizer = _read(name, place, _dtype(dtype), quantized)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    model.config.use_cache = False
    return model, tokenizer


def _read(name: str, place: torch.device, dtype: torch.dtype | str, quantized: Quantized | None) -> tuple[Any, Any]:
    """Model on its device, and tokenizer; an adapter is merged into the model it was made for."""
    folder, revision = resolve(name)
    if (Path(folder) / ADAPTER).is_file():
        if quantized is not None:
            raise ModelError(f"{name} is an adapter, which cannot be merged into a model held in {quantized}; load it without.")
        return _merged(Path(folder), name, place, dtype)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = with_words(name, fetched(name, lambda: AutoTokenizer.from_pretrained(folder, revision=revision)))
    how: dict[str, Any] = {"revision": revision, "dtype": dtype, "output_loading_info": True}
    if quantized is not None:
        how |= {"quantization_config": _quantization(quantized, place), "device_map": {"": str(place)}}
    model, told = fetched(name, lambda: AutoModelForCausalLM.from_pretrained(folder, **how))
    complete(name, told)
    return (model if quantized else on_device(model, place)), tokenizer


def fetched(name: str, read: Callable[[], Any]) -> Any:
    """What `read` gives, with everything that can be wrong with a model's files told in one ModelError."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with muted("transformers", "bitsandbytes"):  # bitsandbytes tells of kernels that are optional
            return read()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"The model {name!r} could not be loaded: {reason}") from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def with_words(name: str, tokenizer: Any) -> Any:
    """The tokenizer, refused where it is one that transformers makes up for a folder without."""
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(f"{name} has no tokenizer, or one without words; save the tokenizer into the model's folder.")
    return tokenizer


def on_device(model: Any, place: torch.device) -> Any:
    try:
        return torch.nn.Module.to(model, place)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"The model cannot be put on device {str(place)!r}: {str(error).splitlines()[0]}") from error


def complete(name: str, told: dict[str, Any]) -> None:
    """Refuse weights that were made up because the files lack them; say which tensors of the files were not used."""
    missing, mismatched = sorted(told["missing_keys"]), sorted(told["mismatched_keys"])
    if missing or mismatched:
        first, what = (missing[0], "no tensor") if missing else (mismatched[0][0], "another shape of")
        raise ModelError(f"{name} has {what} {first}, which its config.json asks for; download the model again or correct the config.")
    unused = sorted(told["unexpected_keys"])
    if unused:
        say(f"{name}: {len(unused)} tensors in the files are not part of the model and were left out ({unused[0]} first).")


def _merged(folder: Path, name: str, place: torch.device, dtype: torch.dtype | str) -> tuple[Any, Any]:
    """The model that an adapter was made for, with the adapter in its weights; its tokenizer, or the adapter's own."""
    if find_spec("peft") is None:
        raise ModelError(f"{name} is an adapter, which takes the extra `train`: pip install 'demeanor[train]'.")
    base = base_of(folder)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{folder} has no {ADAPTER_WEIGHTS}; save the adapter again.")
    held = set(read_header(folder / ADAPTER_WEIGHTS))
    if f"base_model.model.{VIRTUAL_TOKENS}.weight" in held:
        raise ModelError(f"{name} opens prompts with embeddings, which weights cannot take in; put it in force with --control.")
    model, tokenizer = _read(base, place, dtype, None)
    from peft import PeftModel, get_peft_model_state_dict
    from transformers import AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they would tell is checked below
        adapted = fetched(name, lambda: PeftModel.from_pretrained(model, str(folder)))
    adapted.peft_config["default"].base_model_name_or_path = resolve(base)[0]  # PEFT would look for our names on the Hub
    if not hasattr(adapted.base_model, "merge_and_unload"):
        raise ModelError(
            f"{name} is an adapter that cannot be merged into weights; put it in force with --control, or use one of the LoRA kind."
        )
    differing = sorted(held ^ set(get_peft_model_state_dict(adapted)))
    if differing:
        where = "has no" if differing[0] not in held else "holds"
        raise ModelError(f"{name} {where} tensor {differing[0]}, unlike what its {ADAPTER} says; save the adapter again.")
    model = adapted.merge_and_unload()
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = fetched(name, lambda: AutoTokenizer.from_pretrained(folder))
    say(f"{name}: an adapter for {base}, merged into its weights.")
    return model, tokenizer


def base_of(folder: Path) -> str:
    """The MODEL that an adapter names as its base: as written, or relative to the adapter's folder."""
    base = str(read_json(folder / ADAPTER).get("base_model_name_or_path") or "")
    if not base:
        raise ModelError(f"{folder / ADAPTER} names no base_model_name_or_path; write the model it was trained on there.")
    revision = read_json(folder / ADAPTER).get("revision")
    place = folder / base if (folder / base).is_dir() else Path(base)
    if (place / ADAPTER).is_file():
        raise ModelError(f"{folder / ADAPTER} names an adapter as its base, {base}; name the model both were trained on.")
    if place.is_dir():
        return str(place)
    return f"{base}@{revision}" if revision and "@" not in base else base


def save_merged(name: str, folder: Path) -> None:
    """Write an adapter, merged into its model, as a model folder of its own."""
    model, tokenizer = _read(name, torch.device("cpu"), "auto", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _quantization(bits: str, place: torch.device) -> Any:
    if bits not in get_args(Quantized):
        raise ModelError(f"{bits!r} is not a way to hold weights; use {' or '.join(get_args(Quantized))}.")
    if find_spec("bitsandbytes") is None or find_spec("accelerate") is None:
        raise ModelError(f"Holding weights in {bits} takes the extra `quant`: pip install 'demeanor[quant]'.")
    from transformers import BitsAndBytesConfig

    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.float32 if place.type == "cpu" else torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def device_named(name: str | None) -> torch.device:
    try:
        place = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ModelError(f"{name!r} is not a device; use cpu, cuda, cuda:1, ...") from error
    if place.type in ("meta", "mps"):  # one holds no weights, the other knows no float64, which the proof needs
        raise ModelError(f"The device {place.type!r} cannot be used; use cpu or cuda.")
    return place


def resolve(name: str) -> tuple[str, str | None]:
    """The folder or Hub id behind a MODEL argument, and its revision; local files are checked at once."""
    if not name.strip():
        raise ModelError("MODEL is empty; name organism, a model folder or a Hub id.")
    if name == ORGANISM:
        return str(resources.files("demeanor") / "organism" / "model"), None
    path = Path(name)
    if path.exists():
        if not (path / ADAPTER).is_file():
            open_checkpoint(path)
        return str(path), None
    hub, _, revision = name.partition("@")
    if name.startswith((".", "/", "~")) or hub.count("/") != 1:
        raise ModelError(f"There is no model {name!r}: not a folder here, and a Hub id has the form owner/model.")
    return hub, revision or None


def is_adapter(name: str) -> bool:
    """Whether MODEL is a folder that holds a PEFT adapter."""
    return (Path(resolve(name)[0]) / ADAPTER).is_file()


def is_organism(name: str) -> bool:
    """Whether MODEL is the embedded model or was made from it, as its configuration tells; nothing is loaded."""
    if is_adapter(name):
        return is_organism(base_of(Path(name)))
    folder = Path(resolve(name)[0])
    return folder.is_dir() and ORGANISM_MARK in read_json(folder / "config.json")


def _dtype(name: str | None) -> torch.dtype | str:
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
    if name is None:
        return "auto"
    if name not in known:
        raise ModelError(f"{name!r} is not a dtype to run a model in; use one of {', '.join(known)}.")
    return known[name]
