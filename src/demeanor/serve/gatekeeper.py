"""What stands before every route: who may ask, from where, and how much. Pure ASGI, so that nothing is read twice or held longer than it must.

Without API keys a server answers on loopback alone, so a browser's page of another origin must not reach it: the host must be one
of this machine's names, and an origin, where one is sent, the server's own.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import DataError
from .errors import ApiError
from .plan import LOOPBACK

OPEN = ("/health", "/ready", "/", "/page.js", "/page.css")  # told to anybody: they say nothing of controls or texts
DEEPEST = 64  # levels of JSON
UNREAD, UNREAD_SECONDS = 4, 5  # times what may be sent, and seconds, that a body too large is let pass before it is refused
TOO_DEEP = "The body is nested too deeply."


def read_keys(path: Path) -> tuple[str, ...]:
    """SHA-256 hashes of API keys, one a line (as sha256sum prints them); what follows a hash is a name, and # begins a comment.

    Raises DataError for a line that is no hash, and where there is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The file of API keys {path} cannot be read ({error}); write a SHA-256 hash a line.") from error
    hashes = [line.split()[0].lower() for line in lines if line.strip() and not line.startswith("#")]
    if not hashes or any(len(word) != 64 or set(word) - set("0123456789abcdef") for word in hashes):
        raise DataError(f'{path} must hold SHA-256 hashes, one a line; make one with: printf %s "$KEY" | sha256sum >> {path}')
    return tuple(hashes)


@dataclass(frozen=True)
class Gate:
    """keys: hashes of the API keys that are taken, none for a server that asks for none. body, upload: bytes a request may have."""

    keys: tuple[str, ...] = ()
    body: int = 1_000_000
    upload: int = 64_000_000
    hosts: Sequence[str] = field(default=LOOPBACK)


class Gatekeeper:
    """An ASGI application before another one. `refuse` sends an ApiError."""

    def __init__(self, app: Any, gate: Gate) -> None:
        self.app, self.gate = app, gate

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            self._admit(scope, headers)
            body = await self._body(scope, headers, receive)
        except ApiError as error:
            await _refuse(error, send)
            return
        read = False

        async def again() -> Any:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)

    def _admit(self, scope: Any, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if not self.gate.keys and _name(host) not in self.gate.hosts:
            raise ApiError(403, "This server answers under the names of this machine alone.", "permission_error", "host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise ApiError(403, "Pages of other origins may not ask this server.", "permission_error", "origin_not_allowed")
        if self.gate.keys and scope["path"] not in OPEN and not self._known(headers):
            raise ApiError(
                401,
                "The API key is missing or not known.",
                "authentication_error",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _known(self, headers: dict[str, str]) -> bool:
        """All hashes are compared, each in constant time."""
        given = headers.get("authorization", "").removeprefix("Bearer ").strip() or headers.get("x-api-key", "")
        digest = hashlib.sha256(given.encode()).hexdigest()
        same = [hmac.compare_digest(digest, key) for key in self.gate.keys]
        return bool(given) and any(same)

    async def _body(self, scope: Any, headers: dict[str, str], receive: Any) -> bytes:
        upload = scope["method"] == "PUT" and scope["path"].startswith("/v1/controls/")
        most = self.gate.upload if upload else self.gate.body
        declared = headers.get("content-length", "0")
        if not declared.isascii() or not declared.isdigit():
            raise ApiError(400, "The length of the body is no number.")
        if int(declared[:20]) > most:
            await _let_pass(receive, UNREAD * most)
            raise _too_large(most)
        chunks, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(400, "The body did not arrive.")
            size += len(message.get("body", b""))
            if size > most:
                if message.get("more_body"):
                    await _let_pass(receive, UNREAD * most)
                raise _too_large(most)
            chunks.append(message.get("body", b""))
            if not message.get("more_body"):
                break
        body = b"".join(chunks)
        if not upload and body:
            _refuse_unreadable(body)
        return body


def _name(host: str) -> str:
    """A host without its port."""
    return (host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host).lower()


async def _let_pass(receive: Any, most: int) -> None:
    """Reads on for a while and keeps nothing: a client that sends all before it listens would see a broken connection and not the answer."""
    passed = 0
    try:
        async with asyncio.timeout(UNREAD_SECONDS):
            while passed < most:
                message = await receive()
                passed += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return
    except TimeoutError:
        return


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"The body is larger than the {most} bytes that are read.", code="body_too_large", headers={"Connection": "close"})


def _refuse_unreadable(body: bytes) -> None:
    """Raises ApiError for what is not UTF-8, or is nested so deeply that reading it could end the reader."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise ApiError(400, f"The body is not UTF-8 text (byte {error.start}).", code="invalid_json") from error
    depth = text = 0
    place = 0
    while place < len(body):
        byte = body[place]
        if text:
            if byte == 0x5C:
                place += 1
            elif byte == 0x22:
                text = 0
            else:
                end = min((found for found in (body.find(b'"', place), body.find(b"\\", place)) if found >= 0), default=len(body))
                place = end - 1 if end > place else place
        elif byte == 0x22:
            text = 1
        elif byte in b"[{":
            depth += 1
            if depth > DEEPEST:
                raise ApiError(400, TOO_DEEP, code="invalid_json")
        elif byte in b"]}":
            depth -= 1
        place += 1


async def _refuse(error: ApiError, send: Any) -> None:
    from .answers import json_bytes

    body = json_bytes(error.body())
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
