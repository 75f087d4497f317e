"""Writing so that nothing half-written is ever found under the target's name.

Outputs are made beside their target and renamed when complete. What stops the writing (a full disk, a
folder that is not there) becomes one sentence.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import DataError


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A work folder that becomes `target` when the context ends well, and is gone when it does not."""
    refuse_existing(target)
    with _in_one_sentence(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            yield work
            for path in [*work.rglob("*"), work]:
                _settle(path)
            os.rename(work, target)
            _sync(target.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)  # gone already when it was renamed


def refuse_existing(target: Path) -> None:
    """Raises DataError when there is something under that name already."""
    if target.exists():
        raise DataError(f"{target} exists already; name a new folder with -o, or remove it.")
    _refuse_parent(target)


def refuse_folder(target: Path) -> None:
    """Raises DataError when a file of that name cannot be: checked before long work, whose result would be lost."""
    if target.is_dir():
        raise DataError(f"{target} is a folder; name a file.")
    _refuse_parent(target)


def _refuse_parent(target: Path) -> None:
    above = next((parent for parent in target.absolute().parents if parent.exists()), None)
    if above is not None and not above.is_dir():
        raise DataError(f"{target} cannot be written: {above} is a file, not a folder.")


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A path to write to that becomes (or replaces) the file `target` when the context ends well."""
    refuse_folder(target)
    with _in_one_sentence(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(handle)
        try:
            yield Path(name)
            _settle(Path(name))
            os.replace(name, target)
            _sync(target.parent)
        finally:
            Path(name).unlink(missing_ok=True)


def _settle(path: Path) -> None:
    """On the disk, and with the rights that anything new has here: what is made in secret (tempfile, safetensors) has none for others."""
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        return
    umask = os.umask(0o077)
    os.umask(umask)
    os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~umask)
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _in_one_sentence(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{target} could not be written: {error.strerror or error}; nothing was left behind.") from error
    except SafetensorError as error:
        raise DataError(f"{target} could not be written: {error}; nothing was left behind.") from error
