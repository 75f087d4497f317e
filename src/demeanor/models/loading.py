"""Models by name: the embedded one, a folder, or a Hub id.

This and the other files of this package are the only ones that know transformers.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch

from ..errors import ModelError
from .checkpoint import open_checkpoint
from .session import Session

ORGANISM = "organism"


def load(name: str | Path, *, device: str | None = None, dtype: str | None = None) -> Session:
    """A session for `organism`, a model folder, or a Hub id (`owner/model`, `owner/model@revision`).

    device: "cpu", "cuda", ...; the GPU when there is one. dtype: "float32", "bfloat16", ...; as stored.
    Raises ModelError when there is no such model or its files are damaged, AccountingError when its
    residual stream cannot be accounted for.
    """
    name = str(name)
    folder, revision = resolve(name)
    chosen = _dtype(dtype)
    # Importing transformers takes seconds, which asking for help need not.
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision)
        model = AutoModelForCausalLM.from_pretrained(folder, revision=revision, dtype=chosen)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"The model {name!r} could not be loaded: {reason}") from error
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.nn.Module.to(model, torch.device(place))
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"The model cannot be put on device {place!r}: {str(error).splitlines()[0]}") from error
    return Session(model, tokenizer, name)


def resolve(name: str) -> tuple[str, str | None]:
    """The folder or Hub id behind a MODEL argument, and its revision; local files are checked at once."""
    if name == ORGANISM:
        return str(resources.files("demeanor") / "organism" / "model"), None
    path = Path(name)
    if path.exists():
        open_checkpoint(path)
        return str(path), None
    hub, _, revision = name.partition("@")
    if name.startswith((".", "/", "~")) or hub.count("/") != 1:
        raise ModelError(f"There is no model {name!r}: not a folder here, and a Hub id has the form owner/model.")
    return hub, revision or None


def _dtype(name: str | None) -> torch.dtype | str:
    if name is None:
        return "auto"
    chosen = getattr(torch, name, None)
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise ModelError(f"{name!r} is not a floating-point dtype; use float32, bfloat16 or float16.")
    return chosen
