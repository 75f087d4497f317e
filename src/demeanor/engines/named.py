"""The controls that an engine is started with: from the environment, since engines start processes of their own. Requests name them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from ..controls import Control, load_control
from ..errors import ControlError
from ..progress import warn
from ..structure.layout import Layout

CONTROLS = "DEMEANOR_CONTROLS"
TRIED = ("gpt2", "llama", "phi3", "qwen2", "qwen3", "qwen3_moe")  # in vLLM, by `make engines`


def read_named(text: str) -> dict[str, Control]:
    """Controls by name, of `NAME=FILE[:DOSE] ...`, as words of a shell. ControlError for what is not of that form, and for a control that an engine cannot carry."""
    named: dict[str, Control] = {}
    for word in _words(text):
        name, equals, file = word.partition("=")
        if not (name and equals and file) or name in named:
            raise ControlError(f"{CONTROLS} holds {word[:80]!r}, and takes NAME=FILE[:DOSE], each name once, with spaces between.")
        named[name] = load_control(file)
        refuse_uncarried(named[name], name)
    hashes = {control.layout_hash for control in named.values()}
    if len(hashes) > 1:
        raise ControlError(f"The controls of {CONTROLS} were made for {len(hashes)} different structures; name those of the model that is served.")
    return named


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:  # a quotation that does not end
        raise ControlError(f"{CONTROLS} cannot be read ({error}); it takes NAME=FILE[:DOSE], with spaces between.") from error


def refuse_uncarried(control: Control, name: str) -> None:
    """ControlError for what edits of the stream cannot be, so that nothing is left out silently."""
    layout = control.layout
    reasons = {
        "gates, which are not carried into engines": any(part.gates for part in control.parts),
        "an adapter; export it as lora and serve it as such": bool(control.adapters),
        "states of single prompts": bool(control.states),
        "edits at writers with a norm behind them; bake the control instead": any(writer.post_norm for writer in layout.writers) and any(part.scope.site is None for part in control.parts),
        "edits of a model that hands on several copies of its stream": layout.copies > 1,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is not None:
        raise ControlError(f"The control {name} cannot act inside of an engine: it holds {reason}.")


def refuse_unknown(name: object, named: Mapping[str, Control]) -> None:
    """ControlError for a request that names no control of the engine."""
    if not named:
        raise ControlError(f"The request names the control {str(name)[:80]!r}, and the engine was started with none; set {CONTROLS}=NAME=FILE before it starts.")
    if not isinstance(name, str) or name not in named:
        raise ControlError(f"The engine has no control {str(name)[:80]!r}; name one of {', '.join(named)}.")


def refuse_other_model(layout: Layout, model_type: str, n_layers: int, d_model: int) -> None:
    """ControlError for controls of a model of another kind or size. Its weights are not looked at."""
    wanted, held = (layout.model_type, layout.n_layers, layout.d_model), (model_type, n_layers, d_model)
    if wanted != held:
        raise ControlError(
            f"The controls were made for {wanted[0]} with {wanted[1]} layers and {wanted[2]} channels, and the engine serves {held[0]} with {held[1]} and {held[2]}; name controls of that model."
        )


def say_untried(model_type: str) -> None:
    """A sentence where nobody compared yet what controls do in an engine's model of this type."""
    if model_type not in TRIED:
        warn(f"Controls were not tried in an engine on {model_type} models; compare some replies with the control at run time before you rely on it.")
