"""Writing so that nothing half-written is ever found under the target's name.

Outputs are made beside their target and renamed when complete. What stops the writing (a full disk, a
folder that is not there) becomes one sentence.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from ..errors import AccountingError, CheckFailed, DataError, DemeanorError
from ..progress import say
from .claims import REPLACED, RESUMED, beside, claimed, is_stream, refuse_target

STATE, KEY = ".state", "key"  # in a work folder that can be gone on in: what was done, and of what
TORCH_DISK = ("PytorchStreamWriter", "inline_container", "iostream")  # how torch.save says, as a RuntimeError, that a disk is full
MAY_PASS = (OSError, MemoryError, RuntimeError)  # causes of errors that another try need not meet: a full disk, memory that was taken


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A work folder that becomes `target` when the context ends well, and is gone when it does not.

    A folder that exists is replaced where an enclosing claim says so, and refused elsewhere.
    """
    with claimed(target, "folder", replaces=False) as claim, in_one_sentence(target), work_folder(target) as work:
        yield work
        _finish(work, target, claim.replaces)


@contextmanager
def resumed_folder(target: Path, key: str) -> Iterator[Path]:
    """The same, of a work folder that a kill leaves as it is: the next context with the same `key` (what is to be written) goes on in it.

    One that was left with another key goes. An error takes the folder away as ever.
    """
    with claimed(target, "folder", replaces=False) as claim, in_one_sentence(target):
        work = target.with_name(f".{target.name}{RESUMED}")
        state = work / STATE
        if not (state / KEY).is_file() or (state / KEY).read_text(encoding="utf-8") != key:
            shutil.rmtree(work, ignore_errors=True)
            state.mkdir(parents=True)
            (state / KEY).write_text(key, encoding="utf-8")
        try:
            yield work
            shutil.rmtree(state)
            _finish(work, target, claim.replaces)
        finally:
            shutil.rmtree(work, ignore_errors=True)  # gone already when it was renamed


@contextmanager
def kept_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` for what a long job has, which is gone when the context ends well, or with what is no good whenever it is tried.

    A kill, an interrupt and an error that may pass (memory, a full disk) leave it, and the next context goes on with it; whoever uses it tells whose it is.
    """
    work = target.with_name(f".{target.name}{RESUMED}")
    with in_one_sentence(target, f"{work} holds what was computed, and the same command goes on from there"):
        work.mkdir(parents=True, exist_ok=True)
        try:
            yield work
        except (DemeanorError, KeyboardInterrupt, SystemExit) as error:
            lasting = isinstance(error, CheckFailed | DataError | AccountingError) and not isinstance(error.__cause__, MAY_PASS)
            if lasting:  # it is of the model and the prompts as they are
                shutil.rmtree(work)
            else:
                say(f"The same command goes on from here; {work} holds what was computed.")
            raise
        shutil.rmtree(work)


def _finish(work: Path, target: Path, replaces: bool) -> None:
    """What was written is for whom the umask says, on the disk, and under its name."""
    for path in (work, *work.rglob("*")):
        _readable(path, work)
        _flush(path)
    _put(work, target, replaces)


@contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """A folder beside a target that is gone when the context ends; a later command takes away one that a kill left."""
    work = beside(target)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)  # gone already when it was renamed


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A path to write to that becomes (or replaces) the file `target` when the context ends well; into a device or a pipe it is copied."""
    with claimed(target, "file", replaces=True), in_one_sentence(target):
        if is_stream(target):
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder) / "content"
                with (Path(folder) / "content").open("rb") as content, target.open("wb") as stream:
                    shutil.copyfileobj(content, stream)
            return
        with work_folder(target) as folder:  # in a folder, whose mode says what the umask leaves
            work = folder / target.name
            yield work
            _readable(work, folder)
            _flush(work)
            os.replace(work, target)
            _flush(target.absolute().parent)


def refuse_existing(target: Path) -> None:
    """Raises DataError when there is something under that name already, which no claim allows to replace."""
    refuse_target(target, "folder")


def _put(work: Path, target: Path, replaces: bool) -> None:
    """A finished folder under its name; what stood there goes only when the new one is in its place."""
    old = beside(target, REPLACED)
    if replaces and os.path.lexists(target):
        os.rename(target, old)
    try:
        os.rename(work, target)
    except OSError:
        if old.exists():
            os.rename(old, target)
        raise
    _flush(target.absolute().parent)
    shutil.rmtree(old, ignore_errors=True)


def _readable(path: Path, folder: Path) -> None:
    """A file is for whom the umask says, as the new folder is: some libraries write theirs for the owner alone."""
    if path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1:  # another name of a file that is not ours stays as it is
        path.chmod(path.stat().st_mode | (folder.stat().st_mode & 0o666))


def _flush(path: Path) -> None:
    """On the disk, and not only in memory, when this returns; a folder's flush is of its names."""
    folder = path.is_dir()
    if path.is_symlink() or not (path.is_file() or (folder and os.name == "posix")):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(*([OSError] if folder else [])):  # some file systems cannot flush a folder
            os.fsync(handle)
    finally:
        os.close(handle)



@contextmanager
def in_one_sentence(target: Path, end: str = "nothing was left behind") -> Iterator[None]:
    """What stops the writing of `target` is told in one sentence that names it; `end` says what is left, or what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{target} could not be written: {reason}; {end}.") from error
    except RuntimeError as error:
        if not any(sign in str(error) for sign in TORCH_DISK):
            raise
        raise DataError(f"{target} could not be written: the disk is full or went away; {end}.") from error
