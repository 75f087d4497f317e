"""Copies of files and of parts of files that the kernel makes: shared where the file system can, never through this process where it need not."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

CLONE = 0x40049409  # FICLONE: the blocks of a file shared with another, until one of the two is changed
PIECE = 64 << 20  # bytes of one call
WRITE = 2  # SYNC_FILE_RANGE_WRITE: the disk begins with what is not on it yet, and who calls waits only where its queue is full
ELSEWHERE = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM)  # a copy within the kernel is not to be had


def linked(source: Path, target: Path) -> bool:
    """Make `target` another name of the file `source`; False where the file system cannot."""
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES):
            return False
        raise
    return True


def cloned(source: int, target: int) -> bool:
    """Make an empty open file share all blocks of another one; False where the file system cannot."""
    try:
        from fcntl import ioctl
    except ImportError:  # no such system
        return False
    try:
        ioctl(target, CLONE, source)
    except OSError:
        return False
    return True


def copy_range(source: int, target: int, start: int, end: int, at: int | None = None) -> None:
    """Bytes [start, end) of one open file into another, to the same place or to `at`."""
    ahead = (start if at is None else at) - start
    while start < end:
        count = _in_kernel(source, target, start, min(PIECE, end - start), ahead)
        if not count:
            count = write_at(target, os.pread(source, min(PIECE >> 4, end - start), start), start + ahead)
        if not count:
            raise OSError(errno.EIO, "a file became shorter while it was read")
        start += count


def _in_kernel(source: int, target: int, start: int, count: int, ahead: int) -> int:
    """How many bytes the kernel copied; 0 where it cannot."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(source, target, count, start, start + ahead)
    except OSError as error:
        if error.errno not in ELSEWHERE:
            raise
        return 0


def begin_writing(target: int) -> None:
    """Let the disk begin with what was written to an open file, while more is made; nothing where the system has no such call."""
    begin = getattr(ctypes.CDLL(None), "sync_file_range", None) if os.name == "posix" else None
    if begin is not None:
        begin(target, ctypes.c_int64(0), ctypes.c_int64(0), WRITE)  # all of it; a hint, so an error of the disk is told by the flush at the end


def read_at(source: int, into: memoryview, start: int) -> None:
    """Fill a buffer from a place of an open file."""
    done = 0
    while done < len(into):
        count = os.preadv(source, [into[done:]], start + done)
        if not count:
            raise OSError(errno.EIO, "a file became shorter while it was read")
        done += count


def write_at(target: int, data: memoryview | bytes, start: int) -> int:
    """Write all of a buffer to a place of an open file; returns how many bytes that were."""
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(target, view[done:], start + done)
    return done
