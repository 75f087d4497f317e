"""Replies on their way: what was heard of them, and what of that may be told.

Of a reply that is streamed, text is held back until it has passed the moderator.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..behaviours import Prompt
from ..errors import DemeanorError
from .engine import Asked, Ended, Engine, Event, Failed, Piece, Ticket, Token
from .errors import ApiError
from .metrics import Metrics
from .moderation import Finding, Moderator, blocked

CHECKED = 8  # tokens after which a reply that is streamed is looked at again
HELD = 40  # characters that stay back all the same: what is said next may belong to them


@dataclass(frozen=True)
class Done:
    """A whole reply: its text as it may be told, why it ended, and what a receipt says."""

    text: str
    reason: str
    prompt_tokens: int
    reply_tokens: int
    tokens: tuple[Token, ...] = ()
    findings: tuple[Finding, ...] = ()
    receipt: dict[str, Any] = field(default_factory=dict)


class Reply:
    """One reply on its way: what was heard of it, and what of that may be told."""

    def __init__(self, moderator: Moderator, metrics: Metrics, asked: Asked, prompt: Prompt) -> None:
        self.moderator, self.metrics, self.asked, self.prompt = moderator, metrics, asked, prompt
        self._heard = self._told = ""
        self._since, self._tokens, self._watch = 0, list[Token](), metrics.watch()

    async def hear(self, event: Event) -> AsyncIterator[Piece | Done]:
        if isinstance(event, Failed):
            status = {"timeout": 504, "cancelled": 503}.get(event.kind, 500)
            raise ApiError(
                status,
                event.sentence,
                "server_error" if status == 500 else "timeout_error" if status == 504 else "server_error",
                event.kind,
            )
        if isinstance(event, Ended):
            async for out in self._end(event):
                yield out
            return
        if event.token is not None:
            self._watch.token()
            if self.asked.sampling.top is not None:
                self._tokens.append(event.token)
        self._heard += event.text
        if not self.moderator.blocks_replies:
            self._told = self._heard
            yield event
            return
        self._since += 1
        if self._since >= CHECKED:
            self._since = 0
            finding = blocked(await self._findings(self._heard))
            if finding is not None:
                yield self._blocked(finding, [finding], 0)
            else:
                ready = self._heard[len(self._told) : max(len(self._told), len(self._heard) - HELD)]
                self._told += ready
                if ready:
                    yield Piece(ready, event.token)

    async def _end(self, ended: Ended) -> AsyncIterator[Piece | Done]:
        findings = await self._findings(ended.text)
        finding = blocked(findings)
        if finding is not None:
            yield self._blocked(finding, findings, ended.reply_tokens)
            return
        rest = ended.text[len(self._told) :]
        if rest and ended.text.startswith(self._told):
            yield Piece(rest, None)
        self._watch.ended(ended)
        yield Done(
            ended.text, ended.reason, ended.prompt_tokens, ended.reply_tokens, tuple(self._tokens), tuple(findings),
            self._receipt(findings, ended),
        )  # fmt: skip

    def _blocked(self, finding: Finding, findings: Sequence[Finding], tokens: int) -> Done:
        self.metrics.blocked(finding)
        return Done(finding.sentence, "content_filter", len(self.asked.ids), tokens, (), tuple(findings), self._receipt(findings, None))

    async def _findings(self, text: str) -> list[Finding]:
        if not self.moderator.looks_at("output"):
            return []
        (found,) = await asyncio.to_thread(self.moderator.look, "output", [text], [self.prompt])
        return found

    def _receipt(self, findings: Sequence[Finding], ended: Ended | None) -> dict[str, Any]:
        steer = self.asked.steer
        gates = [] if ended is None else [{"gate": gate, "fired": fired} for gate, fired in ended.fired]
        changed = None if ended is None else ended.changed
        return {
            "controls": [] if steer is None else list(steer.told), "gates": gates, "changed": changed,
            "moderation": [finding.told() for finding in findings],
        }  # fmt: skip


class Listening:
    """Requests that were submitted together, heard in an event loop: (number, event), until all have ended."""

    def __init__(self, engine: Engine, asked: Sequence[Asked], pieces: bool) -> None:
        self._loop, self._events = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event]]()
        self._open, self._tickets = set(range(len(asked))), list[Ticket]()
        try:
            for number, one in enumerate(asked):
                self._tickets.append(engine.submit(one, self._heard(number, pieces)))
        except DemeanorError:
            self.close()  # those that were taken
            raise

    def _heard(self, number: int, pieces: bool) -> Callable[[Event], None]:
        first = True

        def heard(event: Event) -> None:
            nonlocal first
            if pieces or first or not isinstance(event, Piece):
                first = False
                if not self._loop.is_closed():
                    self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

        return heard

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        while self._open:
            number, event = await self._events.get()
            if number in self._open:
                if not isinstance(event, Piece):
                    self._open.discard(number)
                yield number, event

    def cancel(self, number: int) -> None:
        self._open.discard(number)
        self._tickets[number].cancel()

    def close(self) -> None:
        for ticket in self._tickets:
            ticket.cancel()
