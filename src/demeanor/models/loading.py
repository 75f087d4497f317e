"""Models by name: the embedded one, a folder, a GGUF file, a Hub id, or an adapter for one of these.

This and the other files of this package are the only ones that know transformers.
"""

from __future__ import annotations

import platform
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import DataError, ModelError
from ..io.plan import EMBEDDED
from ..progress import say, warn
from ..structure.fetched import auto_class, fetched, without_bars
from ..structure.layout import Layout, same_weights
from ..version import __version__
from ..workers import Workers, connected
from .gguf import read_gguf
from .merging import merged_into
from .naming import Place, base_of, resolve, say_which_file, weights_of
from .options import Loading, Quantized, SpreadLoading
from .proven import proven_layout, weights_in_memory
from .session import Session
from .spread import SpreadSession
from .template import CHOICE
from .texts import known_tokens, pad_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OF_FILES = ("device", "device_map", "dtype", "load_in_4bit", "load_in_8bit", "trust_remote_code")  # what a model in memory is past


def load(
    name: str | Path | PreTrainedModel, *, tokenizer: PreTrainedTokenizerBase | None = None, loading: Loading | None = None, **fields: Any
) -> Session:
    """A session for `organism`, a model folder, a GGUF file, a Hub id (`owner/model`, `owner/model@revision`,
    `owner/repo:file.gguf`) or a PEFT adapter folder.

    A model of transformers that is loaded already is taken with its tokenizer: `load(model, tokenizer=tokenizer)`. It is put into
    evaluation mode and its weights take no gradients; its configuration stays as it is.

    loading: how the model is loaded; `fields` are fields of `SpreadLoading` by name (`device="cpu"`, `dtype="bfloat16"`, ...) and win over it.
    With `on="ray"` workers of a Ray cluster hold the model too, and prompts are run there (`SpreadSession`).
    Raises ModelError when there is no such model or its files are damaged, AccountingError when its residual stream cannot be
    accounted for, DataError when the arguments make no sense.
    """
    options = SpreadLoading.of({**(loading.model_dump(exclude_unset=True) if loading else {}), **fields}, "load")
    if isinstance(name, (str, Path)):
        if tokenizer is not None:
            raise DataError("A model that is named brings its own tokenizer; leave tokenizer out, or give the loaded model.")
        if options.spread:
            connected(options.address)  # a mistake there must not wait for the model
        how = options.here
        with torch.inference_mode(False):  # the weights are ordinary ones, wherever they are loaded
            model, tokenizer = _read(str(name), how)
        session = _session(model, tokenizer, str(name), how, weights_of(str(name)))
        return _over_workers(session, options) if options.spread else session
    _refuse_not_loaded(name, tokenizer, options)
    return _session(name, tokenizer, name.name_or_path or type(name).__name__, options, weights_in_memory(name))


def _over_workers(session: Session, options: SpreadLoading) -> SpreadSession:
    """The same with workers, which load the model by its name. A folder or file must lie in the same place on their machines."""
    place = Path(session.name)
    where = str(place.absolute()) if place.exists() and session.name != EMBEDDED else session.name
    loading = options.of_worker
    if CHOICE in loading.chat_template_args:  # a file of this machine may have been named
        loading = loading.model_copy(update={"chat_template_args": {**loading.chat_template_args, CHOICE: session.template.choice}})
    gpus = 0.0 if options.device == "cpu" and options.gpus_per_worker is None else options.gpus_per_worker
    make = partial(of_worker, where, session.name, loading, session.layout, __version__)
    return SpreadSession.of(session, Workers(make, options.address, options.workers, options.cpus_per_worker, gpus))


def of_worker(where: str, name: str, loading: Loading, layout: Layout, version: str) -> Session:
    """What a worker holds: the model at `where`, by the name that it was asked for. ModelError where its machine has another version of the package, another
    model there, or cannot hold it."""
    here = platform.node()
    if version != __version__:
        raise ModelError(f"The machine {here} has version {__version__} of demeanor and this one {version}; install the same on all.")
    try:
        session = load(where, loading=loading)
    except (OSError, RuntimeError) as error:  # such as too little memory on one machine of several
        raise ModelError(f"The machine {here} cannot hold {where} ({' '.join(str(error).split())[:200]}); give workers more, or leave it out.") from error
    if session.layout.hash != layout.hash or same_weights(session.layout.weights, layout.weights) is False:
        raise ModelError(f"The machine {here} has another model by the name {where}; let all machines see the same files.")
    session.name = name
    return session


def _session(model: Any, tokenizer: Any, name: str, loading: Loading, weights: str) -> Session:
    if model.config.get_text_config() is not model.config:
        say(f"{name} takes more than text; what is proven, measured and edited is what it does with text.")
    layout, cached = proven_layout(model.eval(), name, weights, anew=loading.prove)
    return Session(model, tokenizer, name, layout, loading.reply_tokens, loading.chat_template_args, cached)


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
    if any(weight.is_inference() for weight in model.parameters()):
        raise DataError("The model was loaded inside torch.inference_mode, so no gradients pass through it; load it outside.")
    if isinstance(loading, SpreadLoading) and loading.spread:
        raise DataError("Workers load a model by its name, and this one is loaded already; give its name or folder, or leave on out.")
    late = next((field for field in OF_FILES if field in loading.model_fields_set), None)
    if late is not None:
        raise DataError(f"{late} says how files are loaded, and the model is loaded already; leave it out.")


def read_for_training(name: str, loading: Loading) -> tuple[Any, Any]:
    """The model of a MODEL argument, its weights free to change, and its tokenizer, which can pad."""
    model, tokenizer = _read(name, loading)
    known = known_tokens(model)
    if tokenizer.pad_token_id is None or not tokenizer.pad_token_id < known:  # pads are masked, so any token that the model knows will do
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_of(tokenizer, known))
    model.config.use_cache = False
    return model, tokenizer


def _read(name: str, loading: Loading) -> tuple[Any, Any]:
    """Model on its device, and tokenizer; an adapter is merged into the model it was made for."""
    source, place = resolve(name), device_named(loading.device)
    if loading.quantized is not None and (source.is_adapter or source.gguf):
        what = "a GGUF file, which cannot be packed anew as" if source.gguf else "an adapter, which cannot be merged into"
        raise ModelError(f"{name} is {what} a model held in {loading.quantized}; load it without.")
    if source.folder is not None and source.is_adapter:
        return _merged(source.folder, name, loading)
    how: dict[str, Any] = {"dtype": _dtype(loading, source), "output_loading_info": True, **_placed(loading, place)}
    model, tokenizer, info = read_gguf(name, source, how) if source.gguf else _read_files(name, source, how, loading.trust_remote_code)
    complete(name, info)
    if "device_map" not in how:
        return on_device(model, place), tokenizer
    away = next((key for key, parameter in model.named_parameters() if parameter.device.type == "meta"), None)
    if away is not None:
        raise ModelError(
            f"The device map leaves {away} of {name} off the devices, where it cannot be read or edited; map it to one of them."
        )
    return model, tokenizer


def _read_files(name: str, place: Place, how: dict[str, Any], trust_remote_code: bool) -> tuple[Any, Any, dict[str, Any]]:
    """Model, tokenizer and what `from_pretrained` says of the loading, from safetensors."""
    from transformers import AutoConfig, AutoTokenizer

    say_which_file(name)
    source: dict[str, Any] = {"revision": place.revision, "trust_remote_code": trust_remote_code}
    tokenizer = with_words(name, fetched(name, lambda: AutoTokenizer.from_pretrained(place.where, **source)))  # before the weights
    config = fetched(name, lambda: AutoConfig.from_pretrained(place.where, **source))
    model, info = fetched(name, lambda: auto_class(config).from_pretrained(place.where, **how, **source))
    return model, tokenizer, info


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
    model, tokenizer = _read(base, loading)
    model = merged_into(model, folder, name, resolve(base).where)
    if (folder / "tokenizer_config.json").is_file():
        from transformers import AutoTokenizer

        tokenizer = fetched(name, lambda: AutoTokenizer.from_pretrained(folder, trust_remote_code=loading.trust_remote_code))
    say(f"{name}: an adapter for {base}, merged into its weights.")
    return model, tokenizer


def save_whole(name: str, folder: Path, trust_remote_code: bool = False) -> None:
    """Write an adapter, merged into its model, or a GGUF file, unpacked, as a model folder of its own."""
    model, tokenizer = _read(name, Loading(device="cpu", trust_remote_code=trust_remote_code))
    with without_bars():
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


def _dtype(loading: Loading, source: Place) -> torch.dtype | str:
    """As `from_pretrained` takes it. What is packed in a GGUF file is float32 once it is unpacked."""
    if loading.dtype is not None:
        return getattr(torch, loading.dtype)  # type: ignore[no-any-return]
    return torch.float32 if source.gguf else "auto"
