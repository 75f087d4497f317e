"""The folder for what can be made again at any time: DEMEANOR_CACHE, or `demeanor` among the caches of the user."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "DEMEANOR_CACHE"  # names the folder itself
CACHES = "XDG_CACHE_HOME"  # names the folder in which every program has one


def cache_folder() -> Path | None:
    """Where it lies, whether or not it is there yet; None where the user has no home."""
    own, shared = os.environ.get(CACHE), os.environ.get(CACHES)
    if own:
        return Path(own)
    if shared and Path(shared).is_absolute():  # as the convention has it, one that is relative is ignored
        return Path(shared) / "demeanor"
    try:
        return Path.home() / ".cache" / "demeanor"
    except RuntimeError:
        return None
