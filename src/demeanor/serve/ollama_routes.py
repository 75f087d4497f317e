"""Ollama's API, so that front ends made for it work: chat, generate, and what they ask before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request

from ..behaviours import Prompt
from ..version import __version__
from .answers import json_bytes
from .app import service_of, streamed, unless_gone
from .engine import Piece, Sampling
from .errors import ApiError
from .openai_routes import prompt_of
from .replies import Done
from .schemas import Message, OllamaChat, OllamaGenerate, OllamaRequest
from .service import Call, Service

router = APIRouter()


@router.post("/api/chat")
async def chat(body: OllamaChat, request: Request) -> Any:
    """A reply to a conversation, as lines of JSON."""
    service = service_of(request)
    if not body.messages:
        return {**_head(body), "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "load"}
    prompt = prompt_of([Message(role=message.role, content=message.content) for message in body.messages])
    return await _answered(service, body, [prompt], request, lambda text: {"message": {"role": "assistant", "content": text}})


@router.post("/api/generate")
async def generate(body: OllamaGenerate, request: Request) -> Any:
    """A reply to one prompt; `raw` is what follows a text, without the chat template."""
    service = service_of(request)
    if not body.prompt:
        return {**_head(body), "response": "", "done": True, "done_reason": "load"}
    prompt = body.prompt if body.raw else Prompt.of(body.prompt, system=body.system)
    return await _answered(service, body, [prompt], request, lambda text: {"response": text})


async def _answered(service: Service, body: OllamaRequest, prompts: Sequence[Prompt | str], request: Request, said: Any) -> Any:
    steer = service.steer(body.model.removesuffix(":latest"), body.controls)
    await service.allowed([Prompt.of(prompt) if isinstance(prompt, str) else prompt for prompt in prompts])
    options = body.options
    sampling = Sampling(temperature=options.temperature, top_p=options.top_p, seed=options.seed)
    most = options.num_predict if options.num_predict is not None and options.num_predict > 0 else None
    stop = (options.stop,) if isinstance(options.stop, str) else tuple(options.stop or ())
    call = await asyncio.to_thread(
        service.call, prompts, steer, sampling, most=None if most is None else min(most, service.limits.max_tokens), stop=stop, receipt=body.receipt,
        redo=body.redo,
    )  # fmt: skip
    begun = time.perf_counter_ns()
    if not body.stream:
        (done,) = await unless_gone(request, service.whole(call))
        return {**_head(body), **said(done.text), **_tail(body, done, begun)}
    told = service.told(call)
    first = await unless_gone(request, anext(told))
    return streamed(_lines(body, call, first, told, said, begun), "application/x-ndjson", {})


async def _lines(
    body: OllamaRequest, call: Call, first: tuple[int, Piece | Done], rest: AsyncGenerator[tuple[int, Piece | Done]], said: Any, begun: int
) -> AsyncIterator[bytes]:
    try:
        out: Any = first[1]
        while True:
            if isinstance(out, Done):
                text = out.text if out.reason == "content_filter" else ""
                yield json_bytes({**_head(body), **said(text), **_tail(body, out, begun)}) + b"\n"
                return
            if out.text:
                yield json_bytes({**_head(body), **said(out.text), "done": False}) + b"\n"
            _, out = await anext(rest)
    except ApiError as error:
        yield json_bytes({"error": error.message}) + b"\n"
    finally:
        await rest.aclose()


def _head(body: OllamaRequest) -> dict[str, Any]:
    return {"model": body.model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


def _tail(body: OllamaRequest, done: Done, begun: int) -> dict[str, Any]:
    taken = time.perf_counter_ns() - begun
    tail = {
        "done": True, "done_reason": done.reason, "total_duration": taken, "load_duration": 0, "prompt_eval_count": done.prompt_tokens,
        "prompt_eval_duration": 0, "eval_count": done.reply_tokens, "eval_duration": taken,
    }  # fmt: skip
    return {**tail, "receipt": done.receipt} if body.receipt else tail


@router.get("/api/tags")
async def tags(request: Request) -> Any:
    """The model, and the model under each of its controls."""
    service = service_of(request)
    names = [service.name, *(f"{service.name}+{named.name}" for named in service.shelf)]
    about = {
        "format": "safetensors",
        "family": service.session.layout.model_type,
        "parameter_size": "",
        "quantization_level": service.session.dtype_name,
    }
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return {"models": [{"name": name, "model": name, "modified_at": now, "size": 0, "digest": "", "details": about} for name in names]}


@router.get("/api/version")
async def version() -> Any:
    return {"version": __version__}
