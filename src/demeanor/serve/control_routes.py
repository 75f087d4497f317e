"""The controls that a server offers: list, upload, change the dose, remove; all while it runs."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from .app import Json, service_of, unless_gone
from .errors import ApiError
from .openai_routes import prompt_of
from .schemas import DoseRequest, ProjectionsRequest
from .shelf import Named, Shelf, Unknown, terms_of

router = APIRouter()


@router.get("/v1/controls")
async def listed(request: Request) -> Any:
    """All controls with their dose, hash and gates."""
    return {"object": "list", "data": [named.told() for named in service_of(request).shelf]}


@router.get("/v1/controls/{name}")
async def one(name: str, request: Request) -> Any:
    return _found(service_of(request).shelf, name).told()


@router.put("/v1/controls/{name}")
async def upload(name: str, request: Request, dose: Annotated[float, Query(ge=-100, le=100, allow_inf_nan=False)] = 1.0) -> Any:
    """A control file (safetensors, as `demeanor` writes it) as the body. Nothing in it is executed or unpickled."""
    service, body = service_of(request), await request.body()

    def put() -> Named:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "upload.safetensors"  # never the caller's name
            path.write_bytes(body)
            return service.shelf.add_upload(name, path, dose)

    return Json((await asyncio.to_thread(put)).told(), 201)


@router.patch("/v1/controls/{name}")
async def turn(name: str, body: DoseRequest, request: Request) -> Any:
    """Another dose, where requests say none."""
    shelf = service_of(request).shelf
    _found(shelf, name)
    return (await asyncio.to_thread(shelf.turn, name, body.dose)).told()


@router.delete("/v1/controls/{name}")
async def remove(name: str, request: Request) -> Any:
    """Requests that run keep it to their end."""
    shelf = service_of(request).shelf
    _found(shelf, name)
    shelf.remove(name)
    return {"id": name, "object": "control", "deleted": True}


@router.post("/v1/controls/{name}/projections")
async def projections(name: str, body: ProjectionsRequest, request: Request) -> Any:
    """How far the stream points along the control's first direction: a cosine per layer and token of a conversation and its reply."""
    service = service_of(request)
    direction = _found(service.shelf, name).direction
    steer, prompt = service.shelf.steer(terms_of(body.controls)), prompt_of(body.messages)
    await service.allowed([prompt])
    seen = await unless_gone(request, asyncio.to_thread(service.projections, prompt, body.reply, direction, steer))
    values = [[round(value, 4) for value in row] for row in seen.values.tolist()]
    return {"object": "projections", "control": name, "tokens": seen.tokens, "prompt_tokens": seen.prompt_tokens, "values": values}


def _found(shelf: Shelf, name: str) -> Named:
    try:
        return shelf.get(name)
    except Unknown as error:
        raise ApiError(404, str(error), code="control_not_found") from error
