"""The cluster that workers are in: reached, or begun on this machine; and how many workers it has room for."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from ..progress import logger, say

EXTRA = "Workers take Ray, which the extra `ray` brings: pip install 'demeanor[ray]'."

ANSWERS = 10.0  # seconds within which a cluster takes a connection


@dataclass(frozen=True)
class Place:
    """How many workers there are, and what each takes of its machine."""

    workers: int
    cpus: float
    gpus: float


def connected(address: str | None) -> Any:
    """Ray, connected to a cluster: the one this process is connected to already, the one at `address` ("ray://HOST:PORT"), or without an address
    the one that runs on this machine or that RAY_ADDRESS names, or else one that is begun here and ends with this process.

    Raises DataError where Ray is not installed or no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise DataError(EXTRA) from error
    if not ray.is_initialized():
        _refuse_silent(address or os.environ.get("RAY_ADDRESS", ""))
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
        how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, **({} if address else {"include_dashboard": False})}
        with _own_manners():
            try:
                ray.init(address=address, **how)
            except (ConnectionError, ValueError, RuntimeError, OSError) as error:
                reason = " ".join(str(error).split())[:200]
                raise DataError(f"Ray cannot be used ({reason}); see `ray status`, have `ray stop` forget a cluster that is gone, or leave out --on.") from error
    return ray


def _refuse_silent(address: str) -> None:
    """DataError where nothing listens at an address: Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():  # such as "auto"
        return
    try:
        socket.create_connection((host, int(port)), ANSWERS).close()
    except (OSError, UnicodeError) as error:  # the latter for what is no name of a machine
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise DataError(f"No Ray cluster answers at {address} ({reason}); start one with `ray start --head`, or correct --on or RAY_ADDRESS.") from error


@contextmanager
def _own_manners() -> Iterator[None]:
    """The handler of SIGTERM stays the caller's, and standard output belongs to results: Ray sets the one and writes what befalls machines on the other,
    from then on, so what it writes there goes to the logger for as long as the process lives."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    from ray._private import worker as inside

    def logged(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        logger.debug("%s", "\n".join(data["lines"]))

    inside.print_to_stdstream = logged  # there is no option for it
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, handler)


def placed(ray: Any, workers: int | None, cpus: float | None, gpus: float | None) -> Place:
    """What was asked for, and for the rest what the cluster has: a worker for each GPU, or where there are none as many as machines hold, each with all CPUs of the
    smallest machine.

    Raises DataError where no machine has room for one worker.
    """
    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    most = {kind: max((machine.get(kind, 0) for machine in machines), default=0) for kind in ("CPU", "GPU")}
    gpus = gpus if gpus is not None else min(1, most["GPU"])
    least = min((machine["CPU"] for machine in machines if machine.get("CPU", 0) >= 1), default=1)
    cpus = cpus if cpus is not None else (1 if gpus else least)
    rooms = [room for machine in machines if (room := _fits(machine, cpus, gpus))]
    if not rooms:
        raise DataError(
            f"No machine of the cluster has room for a worker of {cpus:g} CPUs and {gpus:g} GPUs (the largest have {most['CPU']:g} and {most['GPU']:g});"
            " give a smaller --cpus-per-worker or --gpus-per-worker."
        )
    place = Place(workers or sum(rooms), cpus, gpus)
    each = _counted(place.cpus, "CPU") + (f" and {_counted(place.gpus, 'GPU')}" if place.gpus else "")
    say(f"{_counted(place.workers, 'worker')} on {_counted(len(rooms), 'machine')}, each of {each}.")
    return place


def _fits(machine: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many workers one machine has room for."""
    return int(min(machine.get(kind, 0) // wanted for kind, wanted in (("CPU", cpus), ("GPU", gpus)) if wanted))


def _counted(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"
