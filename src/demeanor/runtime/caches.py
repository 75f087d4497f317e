"""The cache of a pass by its keyword, which is `cache` in newer versions of transformers and was `past_key_values` before."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

NAMES = ("cache", "past_key_values")


@cache
def keyword() -> str:
    """How the models of the transformers that is installed take their cache."""
    from transformers.generation import utils

    return next(name for name in NAMES if name in getattr(utils, "ALL_CACHE_NAMES", NAMES[1:]))


def cache_of(values: Mapping[str, Any]) -> Any:
    """The cache in the arguments of a pass; None where there is none."""
    return next((values[name] for name in NAMES if values.get(name) is not None), None)


def without_cache(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a pass that neither goes on from a cache nor leaves one."""
    return {**{name: value for name, value in values.items() if name not in NAMES}, "use_cache": False}
