"""Models by name: the embedded one, a folder, a Hub id, or an adapter for one of these.

This and the other files of this package are the only ones that know transformers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import DataError, ModelError
from ..io.checkpoint import open_checkpoint, read_header, read_json
from ..io.claims import refuse_output
from ..progress import muted, say, warn
from ..runtime.adapters import ADAPTER, ADAPTER_WEIGHTS, VIRTUAL_TOKENS
from .options import Loading, Quantized
from .proven import proven_layout
from .session import Session

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ORGANISM = "organism"
OF_FILES = ("device", "device_map", "dtype", "load_in_4bit", "load_in_8bit", "trust_remote_code")  # what a model in memory is past


def load(
    name: str | Path | PreTrainedModel, *, tokenizer: PreTrainedTokenizerBase | None = None, loading: Loading | None = None, **fields: Any
) -> Session:
    """A session for `organism`, a model folder, a Hub id (`owner/model`, `owner/model@revision`) or a PEFT adapter folder.

    A model of transformers that is loaded already is taken with its tokenizer: `load(model, tokenizer=tokenizer)`. It is put into
    evaluation mode and its weights take no gradients; its configuration stays as it is.

    loading: how the model is loaded; `fields` are fields of `Loading` by name (`device="cpu"`, `dtype="bfloat16"`, ...) and win over it.
    Raises ModelError when there is no such model or its files are damaged, AccountingError when its residual stream cannot be
    accounted for, DataError when the arguments make no sense.
    """
    options = Loading.of({**(loading.model_dump(exclude_unset=True) if loading else {}), **fields}, "load")
    if isinstance(name, (str, Path)):
        if tokenizer is not None:
            raise DataError("A model that is named brings its own tokenizer; leave tokenizer out, or give the loaded model.")
        model, tokenizer = _read(str(name), options)
        return _session(model, tokenizer, str(name), options)
    _refuse_not_loaded(name, tokenizer, options)
    return _session(name, tokenizer, name.name_or_path or type(name).__name__, options)


def _session(model: Any, tokenizer: Any, name: str, loading: Loading) -> Session:
    if model.config.get_text_config() is not model.config:
        say(f"{name} takes more than text; what is proven, measured and edited is what it does with text.")
    return Session(model, tokenizer, name, proven_layout(model.eval(), name), loading.reply_tokens, loading.chat_template_args)


def _refuse_not_loaded(model: Any, tokenizer: Any, loading: Loading) -> None:
    """DataError for what is no model of transformers with its tokenizer, and for options that come too late."""
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    if not isinstance(model, PreTrainedModel):
        raise DataError(
            f"load takes a model's name, its folder or a loaded model of transformers, not a value of type {type(model).__name__}."
        )
    if tokenizer is None:
        raise DataError("A loaded model comes with its tokenizer; give both: load(model, tokenizer=tokenizer).")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise DataError(f"tokenizer is a tokenizer of transformers, not a value of type {type(tokenizer).__name__}.")
    late = next((field for field in OF_FILES if field in loading.model_fields_set), None)
    if late is not None:
        raise DataError(f"{late} says how files are loaded, and the model is loaded already; leave it out.")


def read_for_training(name: str, loading: Loading) -> tuple[Any, Any]:
    """The model of a MODEL argument, its weights free to change, and its tokenizer, which can pad."""
    model, tokenizer = _read(name, loading)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    model.config.use_cache = False
    return model, tokenizer


def _read(name: str, loading: Loading) -> tuple[Any, Any]:
    """Model on its device, and tokenizer; an adapter is merged into the model it was made for."""
    folder, revision = resolve(name)
    place = device_named(loading.device)
    if (Path(folder) / ADAPTER).is_file():
        if loading.quantized is not None:
            raise ModelError(f"{name} is an adapter, which cannot be merged into a model held in {loading.quantized}; load it without.")
        return _merged(Path(folder), name, loading)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"revision": revision, "trust_remote_code": loading.trust_remote_code}
    tokenizer = with_words(name, fetched(name, lambda: AutoTokenizer.from_pretrained(folder, **source)))
    how: dict[str, Any] = {"dtype": _dtype(loading), "output_loading_info": True, **source, **_placed(loading, place)}
    model, info = fetched(name, lambda: AutoModelForCausalLM.from_pretrained(folder, **how))
    complete(name, info)
    if "device_map" not in how:
        return on_device(model, place), tokenizer
    away = next((key for key, parameter in model.named_parameters() if parameter.device.type == "meta"), None)
    if away is not None:
        raise ModelError(
            f"The device map leaves {away} of {name} off the devices, where it cannot be read or edited; map it to one of them."
        )
    return model, tokenizer


def _placed(loading: Loading, place: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told about places and packed weights."""
    how: dict[str, Any] = {}
    if loading.device_map is not None:
        if find_spec("accelerate") is None:
            raise ModelError("A device map takes accelerate, which the extra `train` brings: pip install 'demeanor[train]'.")
        how["device_map"] = loading.device_map
    if loading.quantized is not None:
        how = {"device_map": {"": str(place)}, **how, "quantization_config": _quantization(loading.quantized, place)}
    return how


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
        if isinstance(error, ValueError) and "trust_remote_code" in str(error):
            raise ModelError(
                f"{name} brings code of its own, which is not run unless you allow it; read it, then add --trust-remote-code (trust_remote_code=True)."
            ) from error
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


def complete(name: str, info: dict[str, Any]) -> None:
    """Refuse weights that were made up because the files lack them; say which tensors of the files were not used."""
    missing, mismatched = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    if missing or mismatched:
        first, what = (missing[0], "no tensor") if missing else (mismatched[0][0], "another shape of")
        raise ModelError(f"{name} has {what} {first}, which its config.json asks for; download the model again or correct the config.")
    unused = sorted(info["unexpected_keys"])
    if unused:
        warn(f"{name}: {len(unused)} tensors in the files are not part of the model and were left out ({unused[0]} first).")


def _merged(folder: Path, name: str, loading: Loading) -> tuple[Any, Any]:
    """The model that an adapter was made for, with the adapter in its weights; its tokenizer, or the adapter's own."""
    if find_spec("peft") is None:
        raise ModelError(f"{name} is an adapter, which takes the extra `train`: pip install 'demeanor[train]'.")
    base = base_of(folder)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{folder} has no {ADAPTER_WEIGHTS}; save the adapter again.")
    held = set(read_header(folder / ADAPTER_WEIGHTS))
    if f"base_model.model.{VIRTUAL_TOKENS}.weight" in held:
        raise ModelError(f"{name} opens prompts with embeddings, which weights cannot take in; put it in force with --control.")
    model, tokenizer = _read(base, loading)
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
        tokenizer = fetched(name, lambda: AutoTokenizer.from_pretrained(folder, trust_remote_code=loading.trust_remote_code))
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


def save_merged(name: str, folder: Path, trust_remote_code: bool = False) -> None:
    """Write an adapter, merged into its model, as a model folder of its own."""
    model, tokenizer = _read(name, Loading(device="cpu", trust_remote_code=trust_remote_code))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _quantization(bits: Quantized, place: torch.device) -> Any:
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
        refuse_output(path)
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


def _dtype(loading: Loading) -> torch.dtype | str:
    """As `from_pretrained` takes it."""
    return "auto" if loading.dtype is None else getattr(torch, loading.dtype)
