"""What transformers and its like make of a model's files, with whatever goes wrong told in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import DemeanorError, ModelError
from ..progress import muted


def fetched(name: str, read: Callable[[], Any]) -> Any:
    """What `read` gives, with everything that can be wrong with the files of the model `name` told in one ModelError.

    Whatever mode of autograd the caller is in, the tensors that are read are ordinary ones.
    """
    import torch

    try:
        # bitsandbytes tells of kernels that are optional
        with without_bars(), muted("transformers", "bitsandbytes"), torch.inference_mode(False):
            return read()
    except DemeanorError:
        raise
    # Damaged files reach deep into other libraries, which raise whatever comes (tokenizers raises bare exceptions, a head count of 0 a
    # ZeroDivisionError), and a model's own code, where it is allowed, may raise anything.
    except Exception as error:
        raise ModelError(f"The model {name!r} could not be loaded: {_reason(name, error)}") from error


def auto_class(config: Any) -> Any:
    """The class of transformers that makes a model of this configuration: that of causal models or, where a model of images and text has
    none of its own there, that of such models, which are causal too."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind, own = type(config), getattr(config, "auto_map", None) or {}
    causal = kind in AutoModelForCausalLM._model_mapping or "AutoModelForCausalLM" in own
    return AutoModelForCausalLM if causal or kind not in AutoModelForImageTextToText._model_mapping else AutoModelForImageTextToText


@contextmanager
def without_bars() -> Iterator[None]:
    """The bars of transformers are not shown, as far as they heed its settings."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def _reason(name: str, error: Exception) -> str:
    if isinstance(error, ValueError) and "trust_remote_code" in str(error):
        return "it brings code of its own, which is not run unless you allow it; read it, then add --trust-remote-code (trust_remote_code=True)."
    said = " ".join(str(error).split())[:300] or "no reason is given"
    # Of these the message alone says nothing: a missing key is named and no more.
    return said if isinstance(error, OSError | ValueError | RuntimeError | ImportError) else f"{type(error).__name__}: {said}"
