"""Servers on a port of their own, in a thread; the organism behind them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
import uvicorn

import demeanor as dm
from demeanor.serve.plan import ServePlan
from demeanor.serve.serving import _listening, make_app, make_service
from making import ablation, gate_on_length


@dataclass
class Served:
    """A running server: where it is, what it serves."""

    url: str
    service: Any
    key: str = "none"

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=60)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)


@contextmanager
def serving(session: dm.Session, **options: Any) -> Iterator[Served]:
    plan = ServePlan(model="organism", port=0, **options)
    listening = _listening(plan)
    service = make_service(plan, session)
    server = uvicorn.Server(uvicorn.Config(make_app(plan, service), log_level="error", lifespan="off", timeout_graceful_shutdown=10))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", service)
    finally:
        server.should_exit = True
        thread.join(20)
        service.engine.close()
        listening.close()


@pytest.fixture(scope="session")
def served(organism: dm.Session, refusal_ablated: dm.Control) -> Iterator[Served]:
    """The organism with a few controls: one that removes refusals, two that change everything, one behind a gate."""
    with serving(organism, moderate="none") as running:
        shelf = running.service.shelf
        shelf.put("less-refusal", refusal_ablated)
        shelf.put("odd", ablation(organism, rank=2, seed=1))
        shelf.put("other", ablation(organism, rank=1, seed=2), 0.5)
        fires = gate_on_length(organism, ["how do i kill a process ?", "hello"], [True, False])
        shelf.put("gated", refusal_ablated.when(fires))
        running.service.reducer = "less-refusal"
        yield running


Serving = Callable[..., Any]
