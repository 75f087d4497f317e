"""`demeanor --version`: the versions that results depend on, read from what is installed; nothing of it is imported."""

from __future__ import annotations

import platform
import re
from importlib import metadata

from ..version import __version__

MATTERS = ("torch", "transformers", "safetensors", "huggingface-hub", "datasets", "numpy")
FOR_MAKERS = ("dev", "docs")  # extras that change no result
NEEDED_BY = re.compile(r"^([A-Za-z0-9._-]+).*extra == ['\"]([a-z]+)['\"]")


def versions() -> dict[str, str]:
    """Versions by name: this package, Python, and the libraries that results depend on. What is missing has none and is left out."""
    found = {name: version for name in MATTERS if (version := _version(name))}
    return {"demeanor": __version__, "python": platform.python_version()} | found


def extras() -> dict[str, dict[str, str | None]]:
    """The versions of the libraries of every extra, by extra; None for one that is not installed. Empty where the package is not installed itself."""
    found: dict[str, dict[str, str | None]] = {}
    for requirement in _requirements():
        if (match := NEEDED_BY.match(requirement)) and match[2] not in FOR_MAKERS:
            found.setdefault(match[2], {})[match[1]] = _version(match[1])
    return dict(sorted(found.items()))


def lines() -> list[str]:
    """What `--version` prints: a name and its version a line, then the extras that are here, then those that are not."""
    here = {extra: libraries for extra, libraries in extras().items() if all(libraries.values())}
    lacking = [extra for extra in extras() if extra not in here]
    said = [f"{name} {version}" for name, version in versions().items()]
    said += [f"extra {extra}: " + ", ".join(f"{name} {version}" for name, version in libraries.items()) for extra, libraries in here.items()]
    return said + ([f"extras that are not installed: {', '.join(lacking)}"] if lacking else [])


def _requirements() -> list[str]:
    try:
        return metadata.requires("demeanor") or []
    except metadata.PackageNotFoundError:  # run from its sources
        return []


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
