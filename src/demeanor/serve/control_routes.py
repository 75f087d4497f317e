"""The controls that a server offers: list, upload, change the dose, remove; all while it runs."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from .app import Json, service_of
from .errors import ApiError
from .schemas import DoseRequest
from .shelf import Named, Shelf, Unknown

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


def _found(shelf: Shelf, name: str) -> Named:
    try:
        return shelf.get(name)
    except Unknown as error:
        raise ApiError(404, str(error), code="control_not_found") from error
