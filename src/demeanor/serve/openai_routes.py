"""OpenAI's API: chat and text completions, models; and what says how the server does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ..behaviours import Prompt
from ..errors import DataError
from .answers import RECEIPT, Form, json_bytes
from .app import Json, service_of, streamed, unless_gone
from .engine import Sampling
from .schemas import ChatRequest, CompletionRequest, Generates, Message, ReduceRequest
from .service import Call, Service
from .shelf import reduced

router = APIRouter()
STARTED = int(time.time())


def prompt_of(messages: Sequence[Message]) -> Prompt:
    """Messages as a prompt: leading system messages are one, and a last message of the assistant's is how the reply begins."""
    system = [message.text for message in messages if message.role in ("system", "developer")]
    rest = [message for message in messages if message.role not in ("system", "developer")]
    if any(message.role in ("system", "developer") for message in messages[len(system) :]):
        raise DataError("System messages come first; put them before all others.")
    prefill = rest.pop().text if rest and rest[-1].role == "assistant" else ""
    if not rest or rest[-1].role != "user":
        raise DataError("A conversation needs a message of the user's before the reply; add one.")
    return Prompt(messages=tuple((message.role, message.text) for message in rest), system="\n\n".join(system) or None, prefill=prefill)


@router.post("/v1/chat/completions")
async def chat(body: ChatRequest, request: Request) -> Any:
    """A reply to a conversation, under the controls that the request names."""
    service = service_of(request)
    prompt = prompt_of(body.messages)
    call = await _call(service, body, [prompt], [prompt], body.most, body.top)
    return await _answered(service, body, call, request, chat=True)


@router.post("/v1/completions")
async def completions(body: CompletionRequest, request: Request) -> Any:
    """What follows a text, without the chat template."""
    service = service_of(request)
    call = await _call(service, body, body.prompts, [Prompt.of(text) for text in body.prompts], body.max_tokens or 16, body.logprobs)
    return await _answered(service, body, call, request, chat=False)


async def _call(
    service: Service, body: Generates, prompts: Sequence[Prompt | str], looked_at: Sequence[Prompt], most: int | None, top: int | None
) -> Call:
    steer = service.steer(body.model, body.controls)
    await service.allowed(looked_at)
    sampling = Sampling(temperature=body.temperature, top_p=body.top_p, seed=body.seed, top=top)
    return await asyncio.to_thread(
        service.call, prompts, steer, sampling, n=body.n, most=most, stop=body.stops, receipt=body.receipt, redo=body.redo
    )


async def _answered(service: Service, body: Generates, call: Call, request: Request, chat: bool) -> Any:
    form = Form(service, body.model, chat, body.receipt)
    if not body.stream:
        done = await unless_gone(request, service.whole(call))
        headers = {RECEIPT: json_bytes([one.receipt for one in done]).decode()} if body.receipt else {}
        return Json(form.whole(done), headers=headers)
    told = service.told(call)
    first = await unless_gone(request, anext(told))  # what is wrong from the beginning has a status of its own
    known = [] if call.steer is None else list(call.steer.told)
    headers = {RECEIPT: json_bytes({"controls": known}).decode()} if body.receipt else {}
    return streamed(form.chunks(call, first, told, body.usage_in_stream), "text/event-stream", headers)


@router.post("/reduce_refusals")
async def reduce_refusals(body: ReduceRequest, request: Request) -> Any:
    """The reply to a text, with the refusal control at a strength (scaling_factor) and of a rank (num_iterations)."""
    service = service_of(request)
    if service.reducer is None:
        raise DataError("The server was started without controls, so there is none that reduces refusals; name one with --control.")
    prompt = Prompt.of(body.input_text)
    await service.allowed([prompt])
    named = service.shelf.get(service.reducer)
    steer = service.shelf.steer_with(
        named, reduced(named.control, body.scaling_factor, body.num_iterations), f"{body.scaling_factor!r}/{body.num_iterations}"
    )
    call = await asyncio.to_thread(service.call, [prompt], steer, Sampling(), receipt=True)
    (done,) = await unless_gone(request, service.whole(call))
    return {"reduced_text": done.text, "receipt": done.receipt}


@router.get("/v1/models")
async def models(request: Request) -> Any:
    """The model, and the model under each of its controls."""
    service = service_of(request)
    names = [service.name, *(f"{service.name}+{named.name}" for named in service.shelf)]
    return {"object": "list", "data": [_model(name) for name in names]}


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> Any:
    service_of(request).steer(name, "")
    return _model(name)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": STARTED, "owned_by": "demeanor"}


@router.get("/health")
async def health() -> Any:
    """Whether the process answers."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request) -> Any:
    """Whether requests are taken: 503 once the server is about to end."""
    status = service_of(request).engine.status()
    return Json({"ready": status.open, "running": status.running, "waiting": status.waiting}, 200 if status.open else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Any:
    """Counters for Prometheus."""
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4")
