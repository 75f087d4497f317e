"""The server as an ASGI application: the routes, and what every one of them has in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException

from ..errors import DemeanorError
from ..version import __version__
from .answers import json_bytes
from .errors import ApiError, as_api_error
from .gatekeeper import Gate, Gatekeeper
from .service import Service

T = TypeVar("T")


class Json(Response):
    """JSON in ASCII."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json_bytes(content)


class Gone(Exception):
    """The client has gone."""


def application(service: Service, gate: Gate) -> Any:
    """The server of a service, behind its gatekeeper."""
    from . import control_routes, ollama_routes, openai_routes, page

    app = FastAPI(title="demeanor", version=__version__, default_response_class=Json, docs_url=None, redoc_url=None)
    app.state.service = service
    for router in (openai_routes.router, control_routes.router, ollama_routes.router, page.router):
        app.include_router(router)
    app.add_exception_handler(ApiError, lambda request, error: answer(error))
    app.add_exception_handler(DemeanorError, lambda request, error: answer(as_api_error(error)))
    app.add_exception_handler(RequestValidationError, lambda request, error: answer(_invalid(error)))
    app.add_exception_handler(HTTPException, lambda request, error: answer(_of_http(error)))
    app.add_exception_handler(Gone, lambda request, error: Response(status_code=499))

    return Counted(Gatekeeper(app, gate), service)


class Counted:
    """An ASGI application whose answers are counted by route and status; plain ASGI, so that streams pass untouched."""

    def __init__(self, app: Any, service: Service) -> None:
        self.app, self.requests = app, service.metrics.requests

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def counting(message: Any) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self.requests.labels(route, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counting)


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def answer(error: Any) -> Json:
    return Json(error.body(), error.status, error.headers)


def _invalid(error: Any) -> ApiError:
    """The first thing that is wrong with a body, in one sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:] if not isinstance(part, int) or len(first["loc"]) > 2)[:120]
    message = str(first["msg"]).removeprefix("Value error, ").rstrip(".")[:300]
    code = (
        "invalid_json"
        if first["type"] == "json_invalid"
        else "unsupported_parameter"
        if first["type"] == "extra_forbidden"
        else "invalid_value"
    )
    return ApiError(400, f"{place or 'The body'}: {message}.", code=code, param=place or None)


def _of_http(error: Any) -> ApiError:
    if error.status_code == 404:
        return ApiError(404, "There is no such path; GET /openapi.json lists those that there are.", code="not_found")
    return ApiError(error.status_code, f"{error.detail}.".replace("..", "."), headers=error.headers)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives; it is given up, and Gone raised, where the client goes before."""
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for one in (task, left):
            if not one.done():
                one.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def streamed(pieces: AsyncIterator[bytes], media_type: str, headers: dict[str, str]) -> StreamingResponse:
    return StreamingResponse(pieces, media_type=media_type, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **headers})
