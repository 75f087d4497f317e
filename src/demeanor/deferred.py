"""Packages whose names are imported when they are first used, so that whoever needs one of them does not wait for all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def attributes(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and the `__dir__` of a package: `homes` are its modules, each with the names that are taken from it, as one text. Modules of the package are found too."""
    home_of = {name: home for home, names in homes.items() for name in names.split()}

    def attribute(name: str) -> Any:
        if name in home_of:
            return getattr(import_module(home_of[name], package), name)
        if name.startswith("_") or find_spec(f"{package}.{name}") is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return import_module(f"{package}.{name}")

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home_of})

    return attribute, names
