"""From a plan to a server that listens, and to its end: what runs is finished, within a time, before the process goes."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..behaviours import Behaviour, Detect, Preset
from ..controls import load_control
from ..detect import make_detector
from ..errors import DataError
from ..models import Session
from ..progress import say
from .plan import LOOPBACK, ServePlan

WAITING = 2048  # connections that wait to be taken
NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def check_extras() -> None:
    """DataError, naming the extra, where what serving takes is not installed."""
    missing = next((name for name in NEEDED if find_spec(name) is None), None)
    if missing is not None:
        raise DataError(f"Serving takes {missing}, which the extra `serve` brings: pip install 'demeanor[serve]'.")


def make_service(plan: ServePlan, session: Session, behaviour: Behaviour | Preset | None = None) -> Any:
    """The `Service` of a plan on a session, with its engine running."""
    from .batching import Batching
    from .moderation import Moderator, Policy
    from .service import Limits, Service
    from .shelf import Shelf

    shelf = Shelf(session)
    for name, file, dose in plan.named_controls():
        shelf.put(name, load_control(file), dose)
    names = [named.name for named in shelf]
    reducer = shelf.get(plan.reducer).name if plan.reducer is not None else next(iter(names), None)
    detect = Detect(name="refusal") if behaviour is None else behaviour.settled(session).detect
    return Service(
        session, Batching(session, plan.max_rows, plan.max_waiting), shelf, Moderator(Policy.named(plan.moderate), session),
        name=plan.served_name or Path(session.name).name, limits=Limits(plan.max_tokens, plan.max_seconds), redo=make_detector(detect, session), reducer=reducer,
    )  # fmt: skip


def make_app(plan: ServePlan, service: Any) -> Any:
    """The ASGI application of a service."""
    from .app import application
    from .gatekeeper import Gate, read_keys

    keys = () if plan.api_keys is None else read_keys(plan.api_keys)
    return application(service, Gate(keys=keys, hosts=(*LOOPBACK, plan.host)))


def serve(plan: ServePlan, session: Session, behaviour: Behaviour | Preset | None = None) -> None:
    """Listens until the process is told to end. Raises DataError where the address cannot be had."""
    check_extras()
    import uvicorn

    listening = _listening(plan)
    service = make_service(plan, session, behaviour)
    host, port = listening.getsockname()[:2]
    say(
        f"{service.name} at http://{f'[{host}]' if ':' in host else host}:{port} ({len(list(service.shelf))} controls, moderation: {plan.moderate}); end with Ctrl-C."
    )
    config = uvicorn.Config(
        make_app(plan, service), log_level="warning", access_log=False, lifespan="off", server_header=False, timeout_graceful_shutdown=plan.drain_seconds,
        timeout_keep_alive=30, h11_max_incomplete_event_size=65_536,
    )  # fmt: skip

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            service.engine.drain(0)  # no more are taken, and /ready says so, from now on
            super().handle_exit(sig, frame)

    try:
        Server(config).run(sockets=[listening])
    finally:
        service.engine.close()
        listening.close()


def _listening(plan: ServePlan) -> socket.socket:
    family = socket.AF_INET6 if ":" in plan.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((plan.host, plan.port))
        listening.listen(WAITING)  # from here on callers wait, and are not turned away
    except OSError as error:
        listening.close()
        raise DataError(f"The address {plan.host}:{plan.port} cannot be listened at: {error.strerror}; choose another --port.") from error
    return listening
