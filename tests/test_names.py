"""Names of modules stay reachable: no function or class of a package hides a submodule of the same name."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import pytest

import demeanor

PACKAGES = ["demeanor", *(found.name for found in pkgutil.walk_packages(demeanor.__path__, "demeanor.") if found.ispkg)]
# The verb is the word that the wing is named for, and what a user writes: dm.measure(session, behaviour).
VERB_OF_A_WING = {("demeanor", "audit"), ("demeanor", "measure"), ("demeanor", "search")}


@pytest.mark.parametrize("name", PACKAGES)
def test_no_function_hides_a_module(name: str) -> None:
    package = importlib.import_module(name)
    modules = {found.name for found in pkgutil.iter_modules(package.__path__)}
    hidden = {module for module in modules if not isinstance(getattr(package, module, package), ModuleType)}
    assert {(name, module) for module in hidden} <= VERB_OF_A_WING
