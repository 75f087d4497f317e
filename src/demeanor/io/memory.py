"""How much memory a process may still take: what the machine has free, and what its limits leave."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

MEMINFO, STATUS, GROUP = Path("/proc/meminfo"), Path("/proc/self/status"), Path("/sys/fs/cgroup")


def available() -> int | None:
    """Bytes; None where the system does not tell."""
    left = [room for room in (_free(), _of_group(), _of_limit("RLIMIT_AS", "VmSize"), _of_limit("RLIMIT_DATA", "VmData")) if room is not None]
    return max(0, min(left)) if left else None


def _free() -> int | None:
    return _field(MEMINFO, "MemAvailable")


def _of_group() -> int | None:
    """What the control group of the process leaves, where it has a limit. What it holds of files goes when memory is wanted."""
    try:
        most, used = (int((GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        told = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
        return most - used + sum(int(told[name]) for name in ("active_file", "inactive_file"))
    except (OSError, ValueError, KeyError):  # no such file, "max", or another table
        return None


def _of_limit(which: Literal["RLIMIT_AS", "RLIMIT_DATA"], used: str) -> int | None:
    """What a limit of the process leaves."""
    try:
        import resource
    except ImportError:  # no such system
        return None
    soft, _ = resource.getrlimit(getattr(resource, which))
    taken = _field(STATUS, used)
    return None if soft == resource.RLIM_INFINITY or taken is None else soft - taken


def _field(path: Path, name: str) -> int | None:
    """A field of one of the kernel's tables, which are in kB."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(f"{name}:")), None)
    return None if found is None else 1024 * int(found.split()[1])
