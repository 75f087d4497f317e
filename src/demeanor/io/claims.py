"""Claims on outputs: who writes to a target, told to other processes by a lock beside it; and what may stand under its name.

Everything that makes an output impossible is told when it is claimed, before the work. A claim also takes away what
processes that were killed left beside the target.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError
from ..progress import say

Kind = Literal["file", "folder"]
# How the names of a lock, of an unfinished output, of one that can be gone on with, and of a result that is just being replaced end.
LOCK, UNFINISHED, RESUMED, REPLACED = ".demeanor-lock", ".unfinished", ".resumed", ".replaced"
# One of these lies in every folder that this package writes; a model's or an adapter's configuration does in others too, so there the card is to name it.
OWN, CONFIGURATIONS, CARD = ("plan.yaml", "key.json", "training.json"), ("config.json", "adapter_config.json"), "README.md"
PATIENCE = 10.0  # seconds in which a lock without a process in it may still be being written


@dataclass(frozen=True)
class Claim:
    """A target that this process writes to; `replaces` is whether a result that stands there may go."""

    target: Path
    kind: Kind
    replaces: bool
    thread: int


_claims: dict[Path, Claim] = {}
_claiming = threading.Lock()


@contextmanager
def claimed(target: Path, kind: Kind, *, replaces: bool) -> Iterator[Claim]:
    """`target` is this caller's to write while the context lasts; inside a claim of the same target, that one holds.

    Raises DataError, before anything is written, for a target that exists and may not be replaced, that is no plain file
    or folder, that cannot be written, or that another process is writing.
    """
    place = _place(target)
    with _claiming:
        outer = _claims.get(place)
        claim = outer or Claim(Path(target), kind, replaces, threading.get_ident())
        if claim.thread != threading.get_ident():
            raise DataError(f"{target} is being written by another thread of this process; name another output, or wait for it.")
        if outer is None:
            _refuse(claim)
            _claims[place] = claim
    if outer is not None:
        yield outer
        return
    try:
        with _locked(claim):
            yield claim
    finally:
        del _claims[place]


def refuse_target(target: Path, kind: Kind) -> None:
    """Raises DataError where a new `target` cannot be; what an enclosing claim allows is allowed."""
    if _place(target) not in _claims:
        _refuse(Claim(Path(target), kind, kind == "file", 0))


def refuse_output(path: Path) -> None:
    """Raises DataError where what is about to be read would be replaced by, or hold, what is being written: an output is never an input.

    A file may lie beside an output in one folder; a folder that is read (a model) takes no output in it.
    """
    place = _resolved(path)
    for claimed_place, claim in list(_claims.items()):
        same = place == claimed_place or claimed_place in place.parents or _one_file(place, claimed_place)
        if same or (place in claimed_place.parents and place.is_dir()):
            where = "is read" if same else f"lies in {path}, which is read"
            raise DataError(f"The output {claim.target} {where} by the same command; name another output.")


def is_stream(target: Path) -> bool:
    """Whether a target is written into and never replaced: a device such as /dev/null, or a pipe."""
    try:
        mode = target.stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def beside(target: Path, end: str = UNFINISHED) -> Path:
    """A new hidden name beside a target, for what is being written or replaced."""
    return target.with_name(f".{target.name}.{os.urandom(4).hex()}{end}")


# -- what may stand under a target's name -------------------------------------------------------------


def _refuse(claim: Claim) -> None:
    target, kind = claim.target, claim.kind
    above = next((parent for parent in target.absolute().parents if os.path.lexists(parent)), None)
    if above is not None and not above.is_dir():
        raise DataError(f"{target} cannot be written: {above} is a file, not a folder.")
    if not os.path.lexists(target) or (kind == "file" and is_stream(target)):
        return
    if target.is_symlink():
        raise DataError(f"{target} is a link to {os.readlink(target)}, which is not replaced; name another output.")
    if kind == "file":
        _refuse_file(target, claim.replaces)
    elif not claim.replaces:
        raise DataError(f"{target} exists already; name a new folder with -o, or replace it with --force.")
    elif not _is_result(target):
        raise DataError(f"{target} is not a folder that demeanor wrote ({', '.join(OWN)}, or a card that says so: none is in it), so it is not replaced.")


def _refuse_file(target: Path, replaces: bool) -> None:
    if target.is_dir():
        raise DataError(f"{target} is a folder; name a file.")
    if not target.is_file():
        raise DataError(f"{target} is a device or a socket, not a file; name another output.")
    if not replaces:
        raise DataError(f"{target} exists already; name a new file with -o, or replace it with --force.")


def _is_result(folder: Path) -> bool:
    """Whether a folder may be replaced: one that is written by this package, or empty, and that nobody stands in."""
    if not folder.is_dir() or Path.cwd().is_relative_to(folder.resolve()):
        return False
    held, card = {path.name for path in folder.iterdir()}, folder / CARD
    ours = (*OWN, *CONFIGURATIONS) if card.is_file() and b"demeanor" in card.read_bytes() else OWN
    return not held or not held.isdisjoint(ours)


def _place(target: Path) -> Path:
    """Where a target lies, whatever way its folder is named; a link in its own place stays a link."""
    target = Path(target)
    return _resolved(target.absolute().parent) / target.name if target.name else _resolved(target)


def _resolved(path: Path) -> Path:
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError):  # links in a circle
        return Path(path).absolute()


def _one_file(one: Path, other: Path) -> bool:
    """Two names of one file (a hard link)."""
    try:
        return not is_stream(one) and os.path.samefile(one, other)
    except OSError:
        return False


# -- the lock beside it -------------------------------------------------------------------------------


@contextmanager
def _locked(claim: Claim) -> Iterator[None]:
    """A lock beside the target, with this process in it. Folders that were made for it go again where nothing came into them."""
    target = claim.target
    if (claim.kind == "file" and is_stream(target)) or os.environ.get("RANK", "0") != "0":  # of a launch the first process claims for all
        yield
        return
    absent = [parent for parent in target.absolute().parents if not parent.exists()]
    lock = target.with_name(f".{target.name}{LOCK}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _take(lock, target)
    except OSError as error:
        _remove_empty(absent)
        raise DataError(f"{target} cannot be written: {error.strerror or error}.") from error
    try:
        _restore(claim)
        _clean(target)
        yield
    finally:
        lock.unlink(missing_ok=True)
        _remove_empty(absent)


def _take(lock: Path, target: Path) -> None:
    """Make the lock; one of a process that is gone is taken over. DataError where its process lives."""
    for _ in range(3):
        try:
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            owner = _owner(lock)
            if _lives(owner, lock):
                who = f"process {owner['pid']} on {owner['host']}" if owner else "another process"
                raise DataError(
                    f"{target} is being written by {who}; wait for it, or name another output (if no such process is there, remove {lock})."
                ) from None
            lock.unlink(missing_ok=True)
            continue
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(this_process(), file)
        return
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _owner(lock: Path) -> dict[str, Any] | None:
    """The process in a lock; None where none can be read."""
    try:
        values = json.loads(lock.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(values, dict) and isinstance(values.get("pid"), int) and isinstance(values.get("host"), str)
    return values if known else None


def _lives(owner: dict[str, Any] | None, lock: Path) -> bool:
    """Whether the process in a lock is there still. Of other machines that cannot be known, so theirs are."""
    if owner is None:
        try:
            return time.time() - lock.stat().st_mtime < PATIENCE
        except OSError:
            return False
    if owner["host"] == platform.node() and owner["pid"] == os.getpid():
        return False  # this process holds what it claims in memory, so this is of an earlier one with the same number
    return runs(owner)


def this_process() -> dict[str, Any]:
    """What tells this process from all others, on this machine and elsewhere, as JSON holds it."""
    return {"pid": os.getpid(), "started": _started(os.getpid()), "host": platform.node()}


def runs(owner: Mapping[str, Any]) -> bool:
    """Whether the process that `this_process` told of is there still. Of other machines that cannot be known, so theirs are."""
    if owner["host"] != platform.node():
        return True
    try:
        os.kill(owner["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # of another user
    return owner.get("started") in (None, _started(owner["pid"]))


def _started(pid: int) -> str | None:
    """When a process began, in ticks since the machine did: numbers of processes are used again. None where the system does not say."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return text.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _restore(claim: Claim) -> None:
    """Put back a result that was moved aside by a process that was killed before the new one was in its place."""
    target = claim.target
    for old in _left(target, REPLACED):
        if os.path.lexists(target):
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, target)
            say(f"Put {target} back, which a killed process was replacing.")
            _refuse(claim)


def _left(target: Path, end: str) -> list[Path]:
    return sorted(target.parent.glob(f".{_literal(target.name)}.????????{end}"))


def _clean(target: Path) -> None:
    """Take away what killed processes left beside a target, and say so: whoever holds its lock is the only one who writes there."""
    left = _left(target, UNFINISHED)
    if not left:
        return
    size = sum(path.lstat().st_size for one in left for path in (one, *one.rglob("*")))
    for path in left:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    say(f"Removed what a killed process left beside {target}: {', '.join(path.name for path in left)} ({size / 1e6:.1f} MB).")


def _literal(name: str) -> str:
    """A name as a pattern that matches nothing else."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _remove_empty(folders: list[Path]) -> None:
    """Take away the folders that were made and hold nothing, the innermost first."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
