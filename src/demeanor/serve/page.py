"""The page at /: plain HTML, a style and a script, sent as they lie in the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse

router = APIRouter(include_in_schema=False)
FOLDER = Path(__file__).with_name("page")
SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@router.get("/")
async def page() -> Any:
    return FileResponse(FOLDER / "page.html", headers=SAFE)


@router.get("/page.js")
async def script() -> Any:
    return FileResponse(FOLDER / "page.js", media_type="text/javascript", headers=SAFE)


@router.get("/page.css")
async def style() -> Any:
    return FileResponse(FOLDER / "page.css", media_type="text/css", headers=SAFE)
