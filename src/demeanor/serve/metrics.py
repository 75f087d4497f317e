"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

import time
from collections.abc import Callable

from .engine import Ended, Status
from .moderation import Finding

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """Counters of one server; `status` is asked whenever they are read."""

    def __init__(self, status: Callable[[], Status]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        self.requests = Counter("demeanor_requests", "Answers by path and HTTP status.", ("path", "status"), registry=self.registry)
        self.tokens = Counter("demeanor_tokens", "Tokens of prompts and replies.", ("kind",), registry=self.registry)
        self._blocked = Counter("demeanor_blocked", "Requests and replies that a rule blocked.", ("rule", "side"), registry=self.registry)
        self.first = Histogram("demeanor_first_token_seconds", "Time to the first token.", buckets=SECONDS, registry=self.registry)
        self.each = Histogram("demeanor_token_seconds", "Time per token after the first.", buckets=PER_TOKEN, registry=self.registry)
        for name, about, value in (
            ("running", "Requests that run.", lambda: status().running),
            ("waiting", "Requests that wait.", lambda: status().waiting),
        ):
            Gauge(f"demeanor_{name}", about, registry=self.registry).set_function(value)

    def blocked(self, finding: Finding) -> None:
        self._blocked.labels(finding.rule.name, finding.side).inc()

    def watch(self) -> Watch:
        return Watch(self)

    def text(self) -> bytes:
        from prometheus_client import generate_latest

        return bytes(generate_latest(self.registry))


class Watch:
    """The times of one reply."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._begun, self._first = metrics, time.perf_counter(), 0.0

    def token(self) -> None:
        if not self._first:
            self._first = time.perf_counter()
            self._metrics.first.observe(self._first - self._begun)

    def ended(self, ended: Ended) -> None:
        self._metrics.tokens.labels("prompt").inc(ended.prompt_tokens)
        self._metrics.tokens.labels("reply").inc(ended.reply_tokens)
        if self._first and ended.reply_tokens > 1:
            self._metrics.each.observe((time.perf_counter() - self._first) / (ended.reply_tokens - 1))
