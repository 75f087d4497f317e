"""Results of expensive fixtures, made once for the sources they come from.

Two workers, and the next run of the tests, find what the first made, as long as no file of the package, no library
and no argument has changed.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

import demeanor as dm

T = TypeVar("T")
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")
UNUSED = 2 * 24 * 3600  # seconds after which what other sources gave is thrown away


def kept(name: str, make: Callable[[Path], T], *arguments: object) -> T:
    """What `make` gives and the folder it fills, which no test may change.

    It depends on the package, on the file that `make` stands in, on what the tests share, and on `arguments`.
    """
    files = sorted({*Path(__file__).parent.glob("*.py"), Path(make.__code__.co_filename)})
    key = hashlib.sha256(b"\0".join([repr((name, arguments)).encode(), *(path.read_bytes() for path in files)])).hexdigest()[:12]
    folder = kept_root() / f"{name}-{key}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "value").is_file():
            shutil.rmtree(folder, ignore_errors=True)  # a run that was stopped
            folder.mkdir()
            value = make(folder)
            with (folder / "value.part").open("wb") as file:
                _Writer(file).dump(value)
            os.replace(folder / "value.part", folder / "value")
        with (folder / "value").open("rb") as file:
            return _Reader(file).load()  # type: ignore[no-any-return]


@cache
def loaded(name: str) -> dm.Session:
    """The one session with a model that all tests of a process share."""
    return dm.load(name, device="cpu")


class _Writer(pickle.Pickler):
    """Sessions are written as the names of their models."""

    def persistent_id(self, value: Any) -> str | None:
        return value.name if isinstance(value, dm.Session) else None


class _Reader(pickle.Unpickler):
    def persistent_load(self, name: str) -> dm.Session:
        return loaded(name)


@cache
def kept_root() -> Path:
    """A folder that only this user can write, named by all that results depend on."""
    shared = Path(tempfile.gettempdir()) / f"demeanor-tests-{os.getuid()}"
    shared.mkdir(mode=0o700, exist_ok=True)
    if shared.stat().st_uid != os.getuid() or shared.stat().st_mode & 0o077:
        raise PermissionError(f"{shared} can be written by others; remove it.")
    for other in shared.iterdir():
        if other.is_dir() and time.time() - other.stat().st_mtime > UNUSED:
            shutil.rmtree(other, ignore_errors=True)
    root = shared / fingerprint(Path(dm.__file__).parent)
    root.mkdir(exist_ok=True)
    os.utime(root)
    return root


def fingerprint(package: Path) -> str:
    """Of every file of the package and where it lies, which results name, and of the libraries and the machine that it runs on."""
    digest = hashlib.sha256(repr([str(package), platform.python_version(), platform.machine(), *map(version, LIBRARIES)]).encode())
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(package)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
