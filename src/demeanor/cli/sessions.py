"""Models and behaviours that commands name, opened. What loads models is imported with this, which commands that load none leave alone."""

from __future__ import annotations

from ..behaviours import Behaviour, Preset
from ..behaviours import behaviour as read_behaviour
from ..detect import check_detector
from ..models import Loading, Session, load
from ..models.streamed import larger_than_memory
from ..progress import warn


def behaviour_named(name: str) -> Behaviour | Preset:
    """A behaviour whose detector is known to exist: mistakes in the file must not wait for the model, which settles a preset."""
    named = read_behaviour(name)
    check_detector(named)
    return named


def opened(model: str, loading: Loading) -> Session:
    """The model that a command names, loaded as its options say."""
    warn_if_large(model, loading)
    return load(model, loading=loading, reply_tokens=loading.reply_tokens)  # whose default may be a command's own


def warn_if_large(model: str, loading: Loading) -> None:
    """Says that a model does not fit into memory, before it is loaded, and what can be done with it all the same."""
    large = larger_than_memory(model, loading)
    if large is not None:
        warn(f"{large}, so loading it may fail; find --stream finds directions of it block by block, and bake edits its files.")
